// This file is the service on Windows, under the service control manager, and its removal of itself.

package service

import (
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"

	"sojourn.example/agent/internal/agent"
	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/config"
)

// Serve is the agent as a service. It returns when the agent has taken back all but its folder, which goes once it has ended.
func Serve(version string, _ []string) int {
	folder, _, err := Folder()
	if err != nil {
		return 1
	}
	// For a service with a process of its own the manager takes any name; the folder has the service's.
	if err := svc.Run(filepath.Base(folder), &handler{folder, version}); err != nil {
		fmt.Fprintln(os.Stderr, "serve is for the service control manager:", err)
		return 1
	}
	return 0
}

type handler struct {
	folder, version string
}

// restartPause is between the tries to start after a reboot.
const restartPause = 3 * time.Second

// Exit code of the service where the agent could not start; ready.json says why.
const didNotStart = 1

// Execute runs the service, as the service control manager asks.
func (h *handler) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (specific bool, code uint32) {
	status <- svc.Status{State: svc.StartPending, WaitHint: 30000}
	if err := own(h.folder); err != nil {
		log.Printf("restricting the folder: %v", err)
	}
	a, err := h.start()
	if err != nil {
		report(h.folder, refused(err))
		return true, didNotStart
	}
	if a == nil { // after a reboot, in vain
		h.remove()
		return false, 0
	}
	report(h.folder, a.Ready())
	// Not svc.AcceptShutdown: a reboot of the target is not the agent's end, it starts again with the system.
	running := svc.Status{State: svc.Running, Accepts: svc.AcceptStop}
	status <- running

	ended, stop := make(chan struct{}), make(chan struct{})
	go func() {
		a.Wait(stop, stopPatience)
		close(ended)
	}()
	for stopping := false; ; {
		select {
		case request := <-requests:
			switch request.Cmd {
			case svc.Interrogate:
				status <- request.CurrentStatus
			case svc.Stop:
				if !stopping {
					stopping = true
					status <- svc.Status{State: svc.StopPending, WaitHint: uint32((stopPatience + 30*time.Second).Milliseconds())}
					close(stop)
				}
			}
		case <-ended:
			status <- svc.Status{State: svc.StopPending, WaitHint: 30000}
			a.End()
			h.remove()
			return false, 0
		}
	}
}

// start starts the agent. At the first start an error is the way in's to hear of and clean up after. After a reboot nobody
// may be there to listen, and what the agent needs (the firewall's service, for one) may come up later than it does: it
// tries for as long as a lease lasts, and then gives up for good (nil, nil).
func (h *handler) start() (*agent.Agent, error) {
	_, noReady := os.Stat(filepath.Join(h.folder, config.ReadyName))
	c, err := config.Load(h.folder)
	if err != nil {
		if noReady == nil {
			return nil, nil
		}
		return nil, err
	}
	for deadline := time.Now().Add(c.Lease()); ; {
		a, err := agent.Start(c, h.folder, KindWindows, h.version)
		if err == nil || noReady != nil {
			return a, err
		}
		if time.Now().After(deadline) {
			return nil, nil
		}
		<-time.After(restartPause)
	}
}

// remove takes back what only the service knows of: itself and its folder.
func (h *handler) remove() {
	if err := deleteService(filepath.Base(h.folder)); err != nil {
		log.Printf("deleting the service: %v", err)
	}
	if err := deleteFolderAfterwards(h.folder); err != nil {
		log.Printf("deleting the folder: %v", err)
	}
}

// own gives the folder to LocalSystem and the administrators alone: elsewhere under the system's folder every user may read,
// and what is staged here is not for them.
func own(folder string) error {
	descriptor, err := windows.SecurityDescriptorFromString("D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)")
	if err != nil {
		return err
	}
	list, _, err := descriptor.DACL()
	if err != nil {
		return err
	}
	return windows.SetNamedSecurityInfo(folder, windows.SE_FILE_OBJECT,
		windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, list, nil)
}

// deleteService marks the service for deletion; it is gone once it has stopped and nobody holds it open.
func deleteService(name string) error {
	manager, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return err
	}
	defer windows.CloseServiceHandle(manager)
	wide, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return err
	}
	service, err := windows.OpenService(manager, wide, windows.DELETE)
	if err != nil {
		return err
	}
	defer windows.CloseServiceHandle(service)
	return windows.DeleteService(service)
}

// held keeps the agent's end of the pipe open until the process ends; a collected os.File would close it.
var held *os.File

// deleteFolderAfterwards starts the one who deletes the folder. A running executable cannot be deleted on Windows; this
// cmd.exe waits for the end of its standard input, and that is the end of the agent, however it comes. The system may let
// go of the executable an instant later than of the pipe, or a scanner may hold it: hence the tries, a second apart.
func deleteFolderAfterwards(folder string) error {
	system, err := windows.GetSystemDirectory()
	if err != nil {
		return err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	nothing, err := os.OpenFile("NUL", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer nothing.Close()
	executable := filepath.Join(system, "cmd.exe")
	quoted := `"` + folder + `"` // no quote can be in a Windows path
	line := `"` + executable + `" /d /q /c "set /p end= & for /l %i in (1,1,30) do if exist ` + quoted +
		` (rd /s /q ` + quoted + ` & if exist ` + quoted + ` "` + filepath.Join(system, "ping.exe") + `" -n 2 127.0.0.1)"`
	process, err := os.StartProcess(executable, nil, &os.ProcAttr{
		Dir:   filepath.VolumeName(system) + `\`,
		Files: []*os.File{reader, nothing, nothing},
		Sys:   &syscall.SysProcAttr{CmdLine: line, HideWindow: true, CreationFlags: windows.CREATE_NO_WINDOW},
	})
	if err != nil {
		return err
	}
	held = writer
	return process.Release()
}

// Launch is for Linux: on Windows the way in starts the service by the service control manager.
func Launch(io.Reader, io.Writer) int {
	fmt.Fprintln(os.Stderr, catalogue.New("SD-404", "detail", "launch is for Linux").Error())
	return 1
}
