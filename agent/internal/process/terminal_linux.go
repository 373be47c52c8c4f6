// This file has the terminals of processes that ask their user at one.

package process

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal (pty(7)): what the process finds as /dev/tty, and the agent's end of it.
type terminal struct{ ours, theirs *os.File }

// openTerminal makes one that shows what is written to it as it is, and does not repeat what is typed.
func openTerminal() (*terminal, error) {
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	var number uint32
	err = control(ours, func(descriptor int) error {
		if err := unix.IoctlSetPointerInt(descriptor, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		var err error
		number, err = unix.IoctlGetUint32(descriptor, unix.TIOCGPTN)
		return err
	})
	t := &terminal{ours: ours}
	if err == nil {
		t.theirs, err = os.OpenFile("/dev/pts/"+strconv.FormatUint(uint64(number), 10), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err == nil {
		err = control(t.theirs, func(descriptor int) error {
			settings, err := unix.IoctlGetTermios(descriptor, unix.TCGETS)
			if err != nil {
				return err
			}
			settings.Lflag &^= unix.ECHO
			settings.Oflag &^= unix.OPOST
			return unix.IoctlSetTermios(descriptor, unix.TCSETS, settings)
		})
	}
	if err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// control leaves the file to Go's poller, which Fd would take it from.
func control(file *os.File, act func(descriptor int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(descriptor uintptr) { failed = act(int(descriptor)) }); err != nil {
		return err
	}
	return failed
}

// over says that the process has ended: what it has shown can still be read, to the end.
func (t *terminal) over() {
	if t.theirs != nil {
		t.theirs.Close()
	}
}

func (t *terminal) close() {
	t.over()
	t.ours.Close()
}
