//go:build windows

// hold keeps something of Windows open until its standard input ends, for tests of what others can't do meanwhile:
//
//	service NAME    a handle to a service: deleted, it stays, marked for deletion
//	file PATH       a file that nobody else may open: it can't be read, written or deleted
//
// It says "held" once it has it, or why it has not.
package main

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/windows"
)

func main() {
	if err := hold(os.Args[1], os.Args[2]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("held")
	io.Copy(io.Discard, os.Stdin)
}

// hold leaves what it opens open: it is closed when the program ends, however it ends.
func hold(kind, name string) error {
	text, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return err
	}
	switch kind {
	case "service":
		manager, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
		if err != nil {
			return err
		}
		_, err = windows.OpenService(manager, text, windows.SERVICE_QUERY_STATUS)
		return err
	case "file":
		_, err := windows.CreateFile(text, windows.GENERIC_READ, 0, nil, windows.OPEN_EXISTING, windows.FILE_ATTRIBUTE_NORMAL, 0)
		return err
	}
	return fmt.Errorf("no such thing to hold: %s", kind)
}
