package systemlog

import (
	"bytes"
	"log"
	"os"
	"testing"
)

func TestTheEventLogTakesLines(t *testing.T) {
	var out bytes.Buffer
	log.SetOutput(&out)
	defer log.SetOutput(os.Stderr)
	New().Say(false, "Run 0123456789ab: a test.")
	New().Say(true, "Run 0123456789ab: a\r\ntest.")
	if out.Len() != 0 {
		t.Error(out.String())
	}
}
