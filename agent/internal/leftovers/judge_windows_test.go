package leftovers

import (
	"os"
	"testing"
	"time"
)

func TestProcessesOfWindows(t *testing.T) {
	id := uint32(os.Getpid())
	if a := age(id); a < 0 || a > time.Hour {
		t.Error("this test has run for", a)
	}
	if image, want := imageOf(id), os.Args[0]; image == "" {
		t.Errorf("the image is %q, not %q", image, want)
	}
	var found []string
	findGuards(`C:\windows`, nil, func(run string, t thing) { found = append(found, run+t.name) })
	if len(found) != 0 {
		t.Error(found)
	}
}
