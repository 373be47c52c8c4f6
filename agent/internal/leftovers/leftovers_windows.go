// This file finds leftovers on Windows: services and folders. An agent's process is its service's.

package leftovers

import (
	"errors"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"sojourn.example/agent/internal/config"
)

// stopPatience is how long a service that was told to stop gets, before its process is ended.
const stopPatience = 20 * time.Second

func find(add func(string, thing)) error {
	if err := findServices(add); err != nil {
		return err
	}
	root, err := windows.GetSystemWindowsDirectory()
	if err != nil {
		return err
	}
	matches, _ := filepath.Glob(filepath.Join(root, config.Prefix+"*"))
	for _, path := range matches {
		run := runOf(filepath.Base(path))
		info, err := os.Lstat(path)
		if run == "" || err != nil || !info.IsDir() {
			continue
		}
		alive := ""
		// Only an agent that has started writes ready.json; before, somebody may be about to start it.
		if _, err := os.Lstat(filepath.Join(path, config.ReadyName)); err != nil && time.Since(info.ModTime()) < settling {
			alive = "it is being set up"
		}
		add(run, thing{kind: Folder, name: path, remove: func() error { return os.RemoveAll(path) }, alive: alive})
	}
	return nil
}

func findServices(add func(string, thing)) error {
	manager, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT|windows.SC_MANAGER_ENUMERATE_SERVICE)
	if err != nil {
		return err
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
		return err
	}
	if count == 0 {
		return nil
	}
	for _, s := range unsafe.Slice((*windows.ENUM_SERVICE_STATUS_PROCESS)(unsafe.Pointer(&buffer[0])), count) {
		name := windows.UTF16PtrToString(s.ServiceName)
		run := runOf(name)
		alive := ""
		if s.ServiceStatusProcess.CurrentState != windows.SERVICE_STOPPED {
			alive = "its service runs: an agent whose lease is over removes itself"
		}
		add(run, thing{kind: Service, name: name, remove: func() error { return removeService(name) }, alive: alive})
	}
	return nil
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
