package systemlog

import (
	"bytes"
	"log"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestLinesGoToSyslog(t *testing.T) {
	before := socket
	defer func() { socket = before }()
	socket = filepath.Join(t.TempDir(), "log")
	listener, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	buffer := make([]byte, 4096)
	for _, c := range []struct {
		warning    bool
		text, want string
	}{
		{false, "Run 0123456789ab: all is well.", `^<29>\w{3} [ \d]\d \d\d:\d\d:\d\d sojourn-agent\[\d+\]: Run 0123456789ab: all is well\.$`},
		{true, "a\nforged\x00line", `^<28>.*: a forged line$`},
		{true, strings.Repeat("ü", 3000), `^<28>.*: ü{1000}\.\.\.$`},
	} {
		New().Say(c.warning, c.text)
		n, err := listener.Read(buffer)
		if err != nil || !regexp.MustCompile(c.want).Match(buffer[:n]) {
			t.Errorf("%q, %v", buffer[:n], err)
		}
	}
}

func TestWithoutSyslogLinesGoToStandardError(t *testing.T) {
	before := socket
	defer func() { socket = before }()
	socket = filepath.Join(t.TempDir(), "none")
	var out bytes.Buffer
	log.SetOutput(&out)
	defer log.SetOutput(os.Stderr)
	New().Say(true, "x")
	if !strings.HasSuffix(out.String(), "x\n") {
		t.Errorf("%q", out.String())
	}
}
