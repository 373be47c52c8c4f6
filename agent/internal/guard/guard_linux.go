// This file is the guard on Linux.

package guard

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sojourn.example/agent/internal/atboot"
	"sojourn.example/agent/internal/config"
)

// spawn starts the guard from the executable itself, which may be unlinked by then. It is in a session of its own, and in the
// agent's unit, which stays for as long as the guard does: systemd ends the unit's main process only (KillMode=process).
func spawn(pipe *os.File, folder string) (*os.Process, error) {
	nothing, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer nothing.Close()
	return os.StartProcess("/proc/self/exe", []string{filepath.Join(folder, "agent"), Command}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Files: []*os.File{pipe, nothing, os.Stderr},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

// settle: who wants the guard to end says so by SIGTERM, and gets it at once: it has nothing of its own.
func settle() {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	_ = os.WriteFile("/proc/self/comm", []byte("agent"), 0) // or it would be called 'exe' in lists
}

// systemEnds tells whether the agent ended because the system does, to start again with it. Here it never does that.
func systemEnds(string) bool { return false }

// held is a process by its descriptor; on kernels before 5.3 by its id and start.
type held struct {
	id, descriptor int
	start          string
}

// hold gives nil where the process has ended.
func hold(id int) *held {
	descriptor, err := unix.PidfdOpen(id, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		h := &held{id: id, descriptor: -1, start: startOf(id)}
		if h.start == "" {
			return nil
		}
		return h
	}
	return &held{id: id, descriptor: descriptor}
}

func (h *held) release() {
	if h.descriptor >= 0 {
		unix.Close(h.descriptor)
	}
}

func (h *held) ended() bool { return h.endedWithin(0) }

func (h *held) wait() {
	for !h.endedWithin(time.Hour) {
	}
}

func (h *held) endedWithin(patience time.Duration) bool {
	if h.descriptor >= 0 {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(h.descriptor), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		return n > 0 || err != nil && err != unix.EINTR
	}
	for deadline := time.Now().Add(patience); startOf(h.id) == h.start; {
		if !time.Now().Before(deadline) {
			return false
		}
		<-time.After(time.Second) // there is nothing to wait on
	}
	return true
}

// startOf is when a process started, in the kernel's own words; "": it has ended.
func startOf(id int) string {
	raw, _ := os.ReadFile("/proc/" + strconv.Itoa(id) + "/stat")
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}

// keep is what stays in a folder that tells what is left.
var keep []string

// removeService: with the guard's own end the unit is empty; one that failed would stay listed, where systemd is too old for --collect.
func removeService(c *Charge, _ func(what string, there bool, err error)) {
	if c.ServiceKind == "systemd" {
		_ = exec.Command("systemctl", "reset-failed", config.Prefix+c.Run+".service").Run()
	}
}

// removeRest removes all but rules and service.
func removeRest(c *Charge, report func(what string, there bool, err error)) {
	if c.AtBoot {
		if err := atboot.Remove(c.Run, c.AtBootMade); err != nil {
			report("the file "+atboot.Path(c.Run), false, err)
		}
	}
	_, err := os.Lstat(c.Folder)
	report("the folder "+c.Folder, err == nil, gone(os.RemoveAll(c.Folder)))
}
