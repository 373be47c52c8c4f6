// This file finds leftovers on Windows: services, folders and guards. An agent's process is its service's.

package leftovers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/host"
	"sojourn.example/agent/internal/lease"
)

// stopPatience is how long a service that was told to stop gets, before its process is ended.
const stopPatience = 20 * time.Second

func find(add func(string, thing)) error {
	root, err := windows.GetSystemWindowsDirectory()
	if err != nil {
		return err
	}
	services, err := findServices(root)
	if err != nil {
		return err
	}
	findGuards(root, services, add)
	for _, s := range services {
		add(s.run, s.thing)
	}
	matches, _ := filepath.Glob(filepath.Join(root, config.Prefix+"*"))
	for _, path := range matches {
		run := runOf(filepath.Base(path))
		info, err := os.Lstat(path)
		if run == "" || err != nil || !info.IsDir() {
			continue
		}
		settling := ""
		// Only an agent that has started writes ready.json; before, somebody may be about to start it.
		if !exists(path, config.ReadyName) && exists(path, config.SessionName) && isNew(info) {
			settling = "it is being set up"
		}
		add(run, thing{kind: Folder, name: path, remove: func() error { return os.RemoveAll(path) }, settling: settling, folder: path})
	}
	return nil
}

// found is a service of ours.
type found struct {
	run     string
	process uint32
	thing
}

func findServices(root string) (all []found, err error) {
	manager, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT|windows.SC_MANAGER_ENUMERATE_SERVICE)
	if err != nil {
		return nil, err
	}
	defer windows.CloseServiceHandle(manager)
	var needed, count uint32
	buffer := make([]byte, 64<<10)
	for {
		err = windows.EnumServicesStatusEx(manager, windows.SC_ENUM_PROCESS_INFO, windows.SERVICE_WIN32, windows.SERVICE_STATE_ALL,
			&buffer[0], uint32(len(buffer)), &needed, &count, nil, nil)
		if err != windows.ERROR_MORE_DATA {
			break
		}
		buffer = make([]byte, len(buffer)+int(needed)) // the resume handle is not used: all at once
	}
	if err != nil {
		return nil, err
	}
	if count == 0 {
		return nil, nil
	}
	for _, s := range unsafe.Slice((*windows.ENUM_SERVICE_STATUS_PROCESS)(unsafe.Pointer(&buffer[0])), count) {
		name := windows.UTF16PtrToString(s.ServiceName)
		run := runOf(name)
		if run == "" {
			continue
		}
		t := thing{kind: Service, name: name, remove: func() error { return removeService(name) }, folder: filepath.Join(root, name)}
		if s.ServiceStatusProcess.CurrentState != windows.SERVICE_STOPPED {
			t.agent, t.age = true, age(s.ServiceStatusProcess.ProcessId)
		} else if record, err := lease.LoadRecord(t.folder); err == nil && host.SinceBoot() < settlingTime {
			if _, ofThisBoot := record.Left(); !ofThisBoot {
				t.settling = "the target has just started, and its service is about to"
			}
		}
		all = append(all, found{run, s.ServiceStatusProcess.ProcessId, t})
	}
	return all, nil
}

// age is how long a process has run, by the wall clock.
func age(id uint32) time.Duration {
	process, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, id)
	if err != nil {
		return 0
	}
	defer windows.CloseHandle(process)
	var creation, exit, kernel, user windows.Filetime
	if windows.GetProcessTimes(process, &creation, &exit, &kernel, &user) != nil {
		return 0
	}
	return time.Since(time.Unix(0, creation.Nanoseconds()))
}

// findGuards finds the processes of agents' executables that are not their services'. They come before the services: one that is
// left for later would begin to clean up at its agent's end.
func findGuards(root string, services []found, add func(string, thing)) {
	snapshot, err := windows.CreateToolhelp32Snapshot(windows.TH32CS_SNAPPROCESS, 0)
	if err != nil {
		return
	}
	defer windows.CloseHandle(snapshot)
	entry := windows.ProcessEntry32{}
	entry.Size = uint32(unsafe.Sizeof(entry))
	for err = windows.Process32First(snapshot, &entry); err == nil; err = windows.Process32Next(snapshot, &entry) {
		if !strings.EqualFold(windows.UTF16ToString(entry.ExeFile[:]), "agent.exe") {
			continue
		}
		id := entry.ProcessID
		run := runOf(strings.ToLower(filepath.Base(filepath.Dir(imageOf(id)))))
		if run == "" || slices.ContainsFunc(services, func(s found) bool { return s.process == id }) {
			continue
		}
		add(run, thing{
			kind: Process, name: fmt.Sprintf("guard (process %d)", id), guard: true,
			remove: func() error { return endProcess(id) }, folder: filepath.Join(root, config.Prefix+run),
		})
	}
}

func imageOf(id uint32) string {
	process, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, id)
	if err != nil {
		return ""
	}
	defer windows.CloseHandle(process)
	var path [windows.MAX_LONG_PATH]uint16
	size := uint32(len(path))
	if windows.QueryFullProcessImageName(process, 0, &path[0], &size) != nil {
		return ""
	}
	return windows.UTF16ToString(path[:size])
}

// endProcess ends a guard: there is no way to ask it.
func endProcess(id uint32) error {
	process, err := windows.OpenProcess(windows.SYNCHRONIZE|windows.PROCESS_TERMINATE, false, id)
	if err != nil {
		return nil // gone already
	}
	defer windows.CloseHandle(process)
	if err := windows.TerminateProcess(process, 1); err != nil {
		return err
	}
	_, err = windows.WaitForSingleObject(process, uint32(stopPatience.Milliseconds()))
	return err
}

// removeService stops a service, ends its process where it does not stop, and deletes it.
func removeService(name string) error {
	manager, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return err
	}
	defer windows.CloseServiceHandle(manager)
	wide, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return err
	}
	service, err := windows.OpenService(manager, wide, windows.SERVICE_STOP|windows.SERVICE_QUERY_STATUS|windows.DELETE)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	defer windows.CloseServiceHandle(service)
	if err := endService(service); err != nil {
		return err
	}
	if err := windows.DeleteService(service); err != nil && !errors.Is(err, windows.ERROR_SERVICE_MARKED_FOR_DELETE) {
		return err
	}
	return nil
}

// endService waits for the process of a stopped service, not only for the state: the executable is held until then.
func endService(service windows.Handle) error {
	var status windows.SERVICE_STATUS_PROCESS
	var needed uint32
	if err := windows.QueryServiceStatusEx(service, windows.SC_STATUS_PROCESS_INFO, (*byte)(unsafe.Pointer(&status)), uint32(unsafe.Sizeof(status)), &needed); err != nil {
		return err
	}
	if status.ProcessId == 0 {
		return nil
	}
	process, err := windows.OpenProcess(windows.SYNCHRONIZE|windows.PROCESS_TERMINATE, false, status.ProcessId)
	if err != nil {
		return nil // gone already
	}
	defer windows.CloseHandle(process)
	var stopped windows.SERVICE_STATUS
	if err := windows.ControlService(service, windows.SERVICE_CONTROL_STOP, &stopped); err == nil {
		if event, err := windows.WaitForSingleObject(process, uint32(stopPatience.Milliseconds())); err == nil && event == windows.WAIT_OBJECT_0 {
			return nil
		}
	}
	if err := windows.TerminateProcess(process, 1); err != nil {
		return err
	}
	_, err = windows.WaitForSingleObject(process, uint32(stopPatience.Milliseconds()))
	return err
}
