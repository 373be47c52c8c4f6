//go:build windows

// resident is the lab's foot in the Windows of a target: it forwards streams to named pipes, for the bridge beside
// Samba, and tells the nothing-left check what the registry and the service control manager hold.
//
// It listens on the target's loopback only. One request a connection, one line each:
//
//	pipe NAME          then "ok", then the bytes of \\.\pipe\NAME in both directions
//	exists NAME        "yes" or "no": whether there is a pipe of that name
//	services           JSON: every service by its name: state, start type, path, account
//	registry P|Q ...   JSON: every value below HKLM\P and HKLM\Q
//	run JSON           a process, and its standard streams in frames: see run.go
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc/mgr"

	"sojourn.lab/programs/internal/firewall"
)

const address = "127.0.0.1:47000"

func main() {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		fail(err)
	}
	if err := waitForPipe("svcctl", 60*time.Second); err != nil {
		fail(err)
	}
	if err := firewall.Restore(); err != nil {
		fail(err)
	}
	fmt.Println("ready")
	for {
		client, err := listener.Accept()
		if err != nil {
			fail(err)
		}
		go serve(client)
	}
}

func fail(err error) {
	fmt.Println("resident:", err)
	os.Exit(1)
}

func serve(client net.Conn) {
	defer client.Close()
	reader := bufio.NewReader(client)
	line, err := reader.ReadString('\n')
	if err != nil {
		return
	}
	verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	var answer any
	switch verb {
	case "pipe":
		forward(client, reader, rest)
		return
	case "run":
		run(client, reader, rest)
		return
	case "exists":
		fmt.Fprintln(client, exists(rest))
		return
	case "services":
		answer, err = services()
	case "registry":
		found := map[string]string{}
		for _, path := range strings.Split(rest, "|") {
			if err = values(path, found); err != nil {
				break
			}
		}
		answer = found
	default:
		err = fmt.Errorf("no such request: %s", verb)
	}
	if err != nil {
		answer = map[string]string{"error": err.Error()}
	}
	json.NewEncoder(client).Encode(answer)
}

// forward joins a connection and a pipe until either ends.
func forward(client net.Conn, reader io.Reader, name string) {
	pipe, err := open(name)
	if err != nil {
		fmt.Fprintf(client, "%v\n", err)
		return
	}
	fmt.Fprintf(client, "ok\n")
	go func() {
		io.Copy(pipe, reader)
		pipe.Close()
	}()
	io.Copy(client, pipe)
	pipe.Close()
}

func open(name string) (*os.File, error) {
	path, err := windows.UTF16PtrFromString(`\\.\pipe\` + name)
	if err != nil {
		return nil, err
	}
	// Overlapped, so that a blocked read doesn't keep a write waiting.
	handle, err := windows.CreateFile(path, windows.GENERIC_READ|windows.GENERIC_WRITE, 0, nil, windows.OPEN_EXISTING, windows.FILE_FLAG_OVERLAPPED, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(handle), name), nil
}

func waitForPipe(name string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		pipe, err := open(name)
		if err == nil {
			return pipe.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the pipe %s did not appear: %w", name, err)
		}
		time.Sleep(20 * time.Millisecond) // nothing announces a new pipe
	}
}

var waitNamedPipe = windows.NewLazySystemDLL("kernel32.dll").NewProc("WaitNamedPipeW")

// exists looks for a pipe without taking one of its instances. (Wine can't list \\.\pipe\, Windows can.)
func exists(name string) string {
	path, err := windows.UTF16PtrFromString(`\\.\pipe\` + name)
	if err != nil {
		return "no"
	}
	found, _, err := waitNamedPipe.Call(uintptr(unsafe.Pointer(path)), 1)
	if found != 0 || err == windows.ERROR_SEM_TIMEOUT {
		return "yes"
	}
	return "no"
}

func services() (map[string]string, error) {
	manager, err := mgr.Connect()
	if err != nil {
		return nil, err
	}
	defer manager.Disconnect()
	names, err := manager.ListServices()
	if err != nil {
		return nil, err
	}
	states := map[uint32]string{1: "stopped", 2: "start pending", 3: "stop pending", 4: "running"}
	found := map[string]string{}
	for _, name := range names {
		service, err := manager.OpenService(name)
		if err != nil {
			continue
		}
		state, start, path := "?", "?", "?"
		if status, err := service.Query(); err == nil {
			state = states[uint32(status.State)]
		}
		if config, err := configOf(service); err == nil {
			start = map[uint32]string{0: "boot", 1: "system", 2: "automatic", 3: "manual", 4: "disabled"}[config.StartType]
			path = windows.UTF16PtrToString(config.BinaryPathName)
		}
		service.Close()
		found[name] = fmt.Sprintf("%s, %s, %s", state, start, path)
	}
	return found, nil
}

// configOf asks for what every SCM tells; mgr's own Config also asks for what Wine's doesn't.
func configOf(service *mgr.Service) (*windows.QUERY_SERVICE_CONFIG, error) {
	buffer := make([]byte, 8192)
	var needed uint32
	config := (*windows.QUERY_SERVICE_CONFIG)(unsafe.Pointer(&buffer[0]))
	err := windows.QueryServiceConfig(service.Handle, config, uint32(len(buffer)), &needed)
	return config, err
}

// gone tells of a key that is not there, or has been deleted since it was opened.
func gone(err error) bool {
	return err == registry.ErrNotExist || err == windows.ERROR_KEY_DELETED
}

// values collects every value below a key of HKLM as text.
func values(path string, into map[string]string) error {
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, path, registry.READ)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer key.Close()
	into[path] = ""
	names, err := key.ReadValueNames(0)
	if gone(err) {
		delete(into, path)
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		size, kind, err := key.GetValue(name, nil)
		if err != nil {
			continue
		}
		data := make([]byte, size)
		if _, _, err = key.GetValue(name, data); err != nil {
			continue
		}
		text := fmt.Sprintf("%d:%x", kind, data)
		if kind == registry.SZ || kind == registry.EXPAND_SZ {
			text, _, _ = key.GetStringValue(name)
		}
		into[path+`\\`+name] = text
	}
	children, err := key.ReadSubKeyNames(0)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := values(path+`\`+child, into); err != nil {
			return err
		}
	}
	return nil
}
