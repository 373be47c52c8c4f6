//go:build windows

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Frames of `run`: a byte that says what it is, four of length (little-endian), the data.
const (
	frameInput  = 'i' // to the process; an empty one ends its standard input
	frameOutput = 'o'
	frameErrors = 'e'
	frameExit   = 'x' // four bytes: its exit code
	frameError  = '!' // it could not be started: why
)

type order struct {
	Line      string // as CreateProcess takes it
	Folder    string
	Variables []string // NAME=value, beside those there are
}

// run starts a process in a job of its own, joined with the connection. When the other end closes it, the whole job is ended.
func run(client net.Conn, reader io.Reader, text string) {
	var wanted order
	sending := new(sync.Mutex)
	send := func(kind byte, data []byte) {
		sending.Lock()
		defer sending.Unlock()
		head := append([]byte{kind}, binary.LittleEndian.AppendUint32(nil, uint32(len(data)))...)
		client.Write(append(head, data...))
	}
	if err := json.Unmarshal([]byte(text), &wanted); err != nil {
		send(frameError, []byte(err.Error()))
		return
	}
	job, err := newJob()
	if err != nil {
		send(frameError, []byte(err.Error()))
		return
	}
	defer windows.CloseHandle(job)
	process := &exec.Cmd{Path: `C:\windows\system32\cmd.exe`, Dir: wanted.Folder, SysProcAttr: &syscall.SysProcAttr{CmdLine: wanted.Line}}
	process.Env = append(process.Environ(), wanted.Variables...)
	input, err := process.StdinPipe()
	if err == nil {
		process.Stdout = writer(func(data []byte) { send(frameOutput, data) })
		process.Stderr = writer(func(data []byte) { send(frameErrors, data) })
		err = process.Start()
	}
	if err != nil {
		send(frameError, []byte(err.Error()))
		return
	}
	if handle, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(process.Process.Pid)); err == nil {
		windows.AssignProcessToJobObject(job, handle)
		windows.CloseHandle(handle)
	}
	go func() {
		feed(reader, input)
		windows.TerminateJobObject(job, 1)
	}()
	err = process.Wait()
	if ended := new(exec.ExitError); err != nil && !errors.As(err, &ended) {
		send(frameErrors, []byte(fmt.Sprintln(err)))
	}
	send(frameExit, binary.LittleEndian.AppendUint32(nil, uint32(process.ProcessState.ExitCode())))
}

// feed gives a process its input until the connection ends.
func feed(reader io.Reader, input io.WriteCloser) {
	head := make([]byte, 5)
	for {
		if _, err := io.ReadFull(reader, head); err != nil {
			return
		}
		data := make([]byte, binary.LittleEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(reader, data); err != nil {
			return
		}
		if len(data) == 0 {
			input.Close()
		} else {
			input.Write(data) // who does not read it has ended
		}
	}
}

type writer func([]byte)

func (w writer) Write(data []byte) (int, error) {
	w(data)
	return len(data), nil
}

// newJob makes a job whose processes end with its last handle.
func newJob() (windows.Handle, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return 0, err
	}
	limits := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{}
	limits.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	_, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation, uintptr(unsafe.Pointer(&limits)), uint32(unsafe.Sizeof(limits)))
	return job, err
}
