//go:build windows

// sc stands in for sc.exe, of which Wine's says nothing at all when it is asked (`query`): create, description, start, stop, delete
// and query of services, by the same calls to the service control manager, with the exit codes and the form of output of the real one.
//
// What it cannot show: other verbs, other machines (\\NAME), options of `create` but binPath=, start= and DisplayName=.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	starts = map[string]uint32{"auto": windows.SERVICE_AUTO_START, "demand": windows.SERVICE_DEMAND_START, "disabled": windows.SERVICE_DISABLED}
	states = map[uint32]string{1: "STOPPED", 2: "START_PENDING", 3: "STOP_PENDING", 4: "RUNNING", 5: "CONTINUE_PENDING", 6: "PAUSE_PENDING", 7: "PAUSED"}
)

func main() {
	if len(os.Args) < 3 {
		fmt.Print("DESCRIPTION:\r\n        SC is a command line program used for communicating with the\r\n        Service Control Manager and services.\r\n")
		os.Exit(1639)
	}
	verb, name, options := strings.ToLower(os.Args[1]), os.Args[2], os.Args[3:]
	err := do(verb, name, options)
	if err == nil {
		return
	}
	code := windows.ERROR_INVALID_PARAMETER
	errors.As(err, &code)
	fmt.Printf("[SC] %s %d:\r\n\r\n%s\r\n\r\n", err, uint32(code), code.Error())
	os.Exit(int(code))
}

// failed is an error as sc shows it: the call, and its code.
type failed struct {
	call string
	code error
}

func (f failed) Error() string { return f.call + " FAILED" }
func (f failed) Unwrap() error { return f.code }

func do(verb, name string, options []string) error {
	access := map[string]uint32{
		"create": windows.SC_MANAGER_CREATE_SERVICE, "description": windows.SC_MANAGER_CONNECT, "start": windows.SC_MANAGER_CONNECT,
		"stop": windows.SC_MANAGER_CONNECT, "delete": windows.SC_MANAGER_CONNECT, "query": windows.SC_MANAGER_CONNECT}[verb]
	if access == 0 {
		return failed{"verb " + verb, windows.ERROR_INVALID_PARAMETER}
	}
	manager, err := windows.OpenSCManager(nil, nil, access)
	if err != nil {
		return failed{"OpenSCManager", err}
	}
	defer windows.CloseServiceHandle(manager)
	named, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return err
	}
	if verb == "create" {
		return create(manager, named, options)
	}
	right := map[string]uint32{
		"description": windows.SERVICE_CHANGE_CONFIG, "start": windows.SERVICE_START | windows.SERVICE_QUERY_STATUS,
		"stop": windows.SERVICE_STOP, "delete": windows.DELETE, "query": windows.SERVICE_QUERY_STATUS}[verb]
	service, err := windows.OpenService(manager, named, right)
	if err != nil {
		call := "OpenService"
		if verb == "query" {
			call = "EnumQueryServicesStatus:OpenService"
		}
		return failed{call, err}
	}
	defer windows.CloseServiceHandle(service)
	var status windows.SERVICE_STATUS
	switch verb {
	case "description":
		text, err := windows.UTF16PtrFromString(strings.Join(options, " "))
		if err != nil {
			return err
		}
		if err := changeDescription(service, text); err != nil {
			return failed{"ChangeServiceConfig2", err}
		}
		fmt.Print("[SC] ChangeServiceConfig2 SUCCESS\r\n")
	case "start":
		if err := windows.StartService(service, 0, nil); err != nil {
			return failed{"StartService", err}
		}
		if err := windows.QueryServiceStatus(service, &status); err == nil {
			show(name, status)
		}
	case "stop":
		if err := windows.ControlService(service, windows.SERVICE_CONTROL_STOP, &status); err != nil {
			return failed{"ControlService", err}
		}
		show(name, status)
	case "delete":
		if err := windows.DeleteService(service); err != nil {
			return failed{"DeleteService", err}
		}
		fmt.Print("[SC] DeleteService SUCCESS\r\n")
	case "query":
		if err := windows.QueryServiceStatus(service, &status); err != nil {
			return failed{"QueryServiceStatus", err}
		}
		show(name, status)
	}
	return nil
}

func create(manager windows.Handle, name *uint16, options []string) error {
	values := map[string]string{"start=": "demand"}
	for ; len(options) >= 2; options = options[2:] {
		values[strings.ToLower(options[0])] = options[1]
	}
	start, known := starts[values["start="]]
	if len(options) > 0 || !known || values["binpath="] == "" {
		return failed{"create", windows.ERROR_INVALID_PARAMETER}
	}
	path, err := windows.UTF16PtrFromString(values["binpath="])
	if err != nil {
		return err
	}
	shown, err := windows.UTF16PtrFromString(values["displayname="])
	if err != nil {
		return err
	}
	service, err := windows.CreateService(
		manager, name, shown, windows.SERVICE_ALL_ACCESS, windows.SERVICE_WIN32_OWN_PROCESS, start, windows.SERVICE_ERROR_NORMAL, path, nil, nil, nil, nil, nil)
	if err != nil {
		return failed{"CreateService", err}
	}
	windows.CloseServiceHandle(service)
	fmt.Print("[SC] CreateService SUCCESS\r\n")
	return nil
}

func show(name string, status windows.SERVICE_STATUS) {
	fmt.Printf("\r\nSERVICE_NAME: %s \r\n        TYPE               : %x  WIN32_OWN_PROCESS  \r\n        STATE              : %d  %s \r\n",
		name, status.ServiceType, status.CurrentState, states[status.CurrentState])
	fmt.Printf("        WIN32_EXIT_CODE    : %[1]d  (0x%[1]x)\r\n        SERVICE_EXIT_CODE  : %[2]d  (0x%[2]x)\r\n        CHECKPOINT         : 0x%[3]x\r\n        WAIT_HINT          : 0x%[4]x\r\n",
		status.Win32ExitCode, status.ServiceSpecificExitCode, status.CheckPoint, status.WaitHint)
}

func changeDescription(service windows.Handle, text *uint16) error {
	description := windows.SERVICE_DESCRIPTION{Description: text}
	return windows.ChangeServiceConfig2(service, windows.SERVICE_CONFIG_DESCRIPTION, (*byte)(unsafe.Pointer(&description)))
}
