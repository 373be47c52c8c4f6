// This file is the service on Windows, under the service control manager, and its removal of itself.

package service

import (
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc"

	"sojourn.example/agent/internal/agent"
	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/firewall"
	"sojourn.example/agent/internal/guard"
	"sojourn.example/agent/internal/lease"
	"sojourn.example/agent/internal/ownership"
	"sojourn.example/agent/internal/removal"
	"sojourn.example/agent/internal/systemlog"
)

// Serve is the agent as a service. It returns when the agent has taken back all but its folder, which goes once it has ended.
func Serve(version string, _ []string) int {
	folder, _, err := Folder()
	if err != nil {
		return 1
	}
	// For a service with a process of its own the manager takes any name; the folder has the service's.
	if err := svc.Run(filepath.Base(folder), &handler{folder: folder, version: version, own: ownership.Take}); err != nil {
		fmt.Fprintln(os.Stderr, "serve is for the service control manager:", err)
		return 1
	}
	return 0
}

type handler struct {
	folder, version string
	own             func(folder string) error // ownership.Take; a test has another
	guard           *guard.Guard
}

// restartPause is between the tries to start after a reboot.
const restartPause = 3 * time.Second

// Exit code of the service where the agent could not start; ready.json says why.
const didNotStart = 1

// Execute runs the service, as the service control manager asks.
func (h *handler) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (specific bool, code uint32) {
	status <- svc.Status{State: svc.StartPending, WaitHint: 30000}
	a, err := h.start()
	if err != nil {
		report(h.folder, refused(err))
		h.guard.StandDown()
		return true, didNotStart
	}
	if a == nil { // after a reboot, in vain
		h.removeService(func(string, error) {})
		h.removeFolder(func(string, error) {})
		h.guard.StandDown()
		return false, 0
	}
	report(h.folder, a.Ready())
	// Not svc.AcceptShutdown: a reboot of the target is not the agent's end, it starts again with the system.
	running := svc.Status{State: svc.Running, Accepts: svc.AcceptStop}
	status <- running
	flush(filepath.Base(h.folder))

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
			status <- svc.Status{State: svc.StopPending, WaitHint: 60000}
			left := a.End()
			h.removeService(a.Removed)
			if left != nil {
				a.Left(left, removal.Executable) // which is running
			} else {
				h.removeFolder(a.Removed)
			}
			a.Tell()
			h.guard.StandDown() // before this process ends: its executable is in the folder, which is deleted then
			return false, 0
		}
	}
}

var regFlushKey = windows.NewLazySystemDLL("advapi32.dll").NewProc("RegFlushKey")

// flush has the system write to the disk that there is this service. It would do so by itself, some seconds later: were the power
// cut before, the folder would be there at the next boot, and no service to remove it.
func flush(name string) {
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Services\`+name, registry.QUERY_VALUE)
	if err != nil {
		return
	}
	defer key.Close()
	regFlushKey.Call(uintptr(key))
}

// start starts the agent. At the first start an error is the way in's to hear of and clean up after. After a reboot nobody
// may be there to listen, and what the agent needs (the firewall's service, for one) may come up later than it does: it
// tries for as long as a lease lasts, and then gives up for good (nil, nil).
func (h *handler) start() (*agent.Agent, error) {
	_, noReady := os.Stat(filepath.Join(h.folder, config.ReadyName))
	run := strings.TrimPrefix(filepath.Base(h.folder), config.Prefix)
	inVain := func(err error) {
		systemlog.New().Say(true, fmt.Sprintf("Run %s: the target was restarted, and the agent could not start again: %v. It removes itself.", run, err))
		// The firewall keeps its rules over a reboot, and whoever made this one is no more.
		if _, err := firewall.New().Close(func(rule firewall.Rule) bool { return rule.Run() == run }); err != nil {
			log.Printf("closing the port: %v", err)
		}
	}
	c, err := h.prepare()
	if err != nil {
		if noReady == nil {
			inVain(err)
			return nil, nil
		}
		return nil, err
	}
	// Before anything that takes time: the record of an earlier boot would make this agent seem dead.
	if err := lease.NewRecord(c.Lease(), 0).Save(h.folder); err != nil {
		log.Printf("writing the lease down: %v", err)
	}
	h.guard = guard.Start(guard.Charge{Run: c.Run, Folder: h.folder, ServiceKind: KindWindows})
	for deadline := time.Now().Add(c.Lease()); ; {
		a, err := agent.Start(agent.Settings{
			Config: c, Folder: h.folder, ServiceKind: KindWindows, Version: h.version, Guard: h.guard, Restarted: noReady == nil,
		})
		if err == nil || noReady != nil {
			return a, err
		}
		if time.Now().After(deadline) {
			inVain(err)
			return nil, nil
		}
		<-time.After(restartPause)
	}
}

// prepare is what comes before all else. Where the folder would be others' to read, the agent must not serve.
func (h *handler) prepare() (*config.Config, error) {
	if err := h.own(h.folder); err != nil {
		return nil, err
	}
	return config.Load(h.folder)
}

func (h *handler) removeService(removed func(what string, err error)) {
	name := filepath.Base(h.folder)
	removed("the service "+name, removal.Service(name))
}

func (h *handler) removeFolder(removed func(what string, err error)) {
	removed("the folder "+h.folder, removal.FolderAfterwards(h.folder))
}

// Launch is for Linux: on Windows the way in starts the service by the service control manager.
func Launch(io.Reader, io.Writer) int {
	fmt.Fprintln(os.Stderr, catalogue.New("SD-404", "detail", "launch is for Linux").Error())
	return 1
}
