// Package removal makes an agent's service and folder disappear from a Windows target, when its end, or its guard, comes to that.
package removal

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/windows"
)

// Executable is the agent's, in its folder. A running one cannot be deleted.
const Executable = "agent.exe"

// Service marks the service for deletion; it is gone once it has stopped and nobody holds it open.
func Service(name string) error {
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

// ServiceThere tells whether there is such a service.
func ServiceThere(name string) bool {
	manager, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return true
	}
	defer windows.CloseServiceHandle(manager)
	wide, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return false
	}
	service, err := windows.OpenService(manager, wide, windows.SERVICE_QUERY_STATUS)
	if err != nil {
		return !errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST)
	}
	windows.CloseServiceHandle(service)
	return true
}

// held keeps this process's end of the pipe open until it ends; a collected os.File would close it.
var held *os.File

// FolderAfterwards starts the one who deletes the folder of this process's executable. A running executable cannot be deleted on
// Windows; this cmd.exe waits for the end of its standard input, and that is the end of this process, however it comes. The system
// may let go of the executable an instant later than of the pipe, or a scanner may hold it: hence the tries, a second apart.
// Meanwhile somebody else may have deleted the folder and put another agent into one of the same name: the mark in the folder
// tells whether it is still the one to delete.
func FolderAfterwards(folder string) error {
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
	var id [8]byte
	rand.Read(id[:])
	mark := filepath.Join(folder, "end-"+hex.EncodeToString(id[:]))
	if os.WriteFile(mark, nil, 0o600) != nil {
		mark = folder
	}
	executable := filepath.Join(system, "cmd.exe")
	process, err := os.StartProcess(executable, nil, &os.ProcAttr{
		Dir:   filepath.VolumeName(system) + `\`,
		Files: []*os.File{reader, nothing, nothing},
		Sys:   &syscall.SysProcAttr{CmdLine: deletion(system, folder, mark), HideWindow: true, CreationFlags: windows.CREATE_NO_WINDOW},
	})
	if err != nil {
		return err
	}
	held = writer
	return process.Release()
}

// deletion is the command line of the one who deletes. No quote can be in a Windows path.
func deletion(system, folder, mark string) string {
	again := `"` + filepath.Join(system, "ping.exe") + `" -n 2 127.0.0.1`
	if mark != folder {
		again = `echo.>"` + mark + `" & ` + again // it may be the one thing that could be deleted
	}
	folder, mark = `"`+folder+`"`, `"`+mark+`"`
	return `"` + filepath.Join(system, "cmd.exe") + `" /d /q /c "set /p end= & for /l %i in (1,1,30) do if exist ` + mark +
		` (rd /s /q ` + folder + ` & if exist ` + folder + ` (` + again + `))"`
}
