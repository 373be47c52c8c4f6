// This file is the guard on Windows.

package guard

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/windows"

	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/removal"
)

func spawn(pipe *os.File, folder string) (*os.Process, error) {
	nothing, err := os.OpenFile("NUL", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer nothing.Close()
	executable, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return os.StartProcess(executable, []string{executable, Command}, &os.ProcAttr{
		Dir:   filepath.VolumeName(folder) + `\`, // or the folder could not be deleted
		Files: []*os.File{pipe, nothing, nothing},
		Sys:   &syscall.SysProcAttr{HideWindow: true, CreationFlags: windows.CREATE_NO_WINDOW},
	})
}

var (
	setConsoleCtrlHandler = windows.NewLazySystemDLL("kernel32.dll").NewProc("SetConsoleCtrlHandler")
	getSystemMetrics      = windows.NewLazySystemDLL("user32.dll").NewProc("GetSystemMetrics")
)

const (
	shutdownEvent  = 6      // CTRL_SHUTDOWN_EVENT
	shuttingDown   = 0x2000 // SM_SHUTTINGDOWN
	shutdownDoubt  = 5 * time.Second
	shutdownGlance = 100 * time.Millisecond
)

// told is that the system is shutting down.
var told atomic.Bool

// settle: who has a console hears of every logging off, and is ended if it does not say that this is not for it.
func settle() {
	setConsoleCtrlHandler.Call(windows.NewCallback(func(event uintptr) uintptr {
		if event == shutdownEvent {
			told.Store(true)
		}
		return 1
	}), 1)
}

// systemEnds tells whether the agent ended because the system does: then its service starts it again, and must be there. At a
// shutdown processes end in any order, and a guard that outlives its agent is ended itself some moments later: it lets those
// pass. Where somebody else has deleted the service there is nothing to be in doubt of.
func systemEnds(service string) bool {
	for deadline := time.Now().Add(shutdownDoubt); time.Now().Before(deadline) && removal.ServiceThere(service); {
		if now, _, _ := getSystemMetrics.Call(shuttingDown); now != 0 || told.Load() {
			return true
		}
		<-time.After(shutdownGlance)
	}
	return false
}

// held is a process by its handle.
type held struct{ process windows.Handle }

// hold gives nil where the process has ended.
func hold(id int) *held {
	process, err := windows.OpenProcess(windows.SYNCHRONIZE, false, uint32(id))
	if err != nil {
		return nil
	}
	return &held{process}
}

func (h *held) release() { windows.CloseHandle(h.process) }

func (h *held) ended() bool {
	event, err := windows.WaitForSingleObject(h.process, 0)
	return err != nil || event == windows.WAIT_OBJECT_0
}

func (h *held) wait() { _, _ = windows.WaitForSingleObject(h.process, windows.INFINITE) }

// keep is what stays in a folder that tells what is left.
var keep = []string{removal.Executable}

func removeService(c *Charge, report func(what string, there bool, err error)) {
	name := config.Prefix + c.Run
	err := removal.Service(name)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) || errors.Is(err, windows.ERROR_SERVICE_MARKED_FOR_DELETE) {
		report("the service "+name, false, nil)
	} else {
		report("the service "+name, true, err)
	}
}

// removeRest: the folder goes once the guard, whose executable is in it, has ended.
func removeRest(c *Charge, report func(what string, there bool, err error)) {
	if _, err := os.Lstat(c.Folder); err == nil {
		report("the folder "+c.Folder, true, removal.FolderAfterwards(c.Folder))
	}
}
