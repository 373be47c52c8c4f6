//go:build windows

// demo behaves as told, for testing how output, exit codes, waiting, cancelling and services are handled. In the order
// given:
//
//	--line TEXT          print a line           --error TEXT   print a line to standard error
//	--lines N SECONDS    print N lines, that far apart
//	--input              read a line from standard input, for as long as it takes, and print it
//	--sleep SECONDS      wait
//	--tree N SECONDS     start a chain of N processes that each wait so long, and wait for them
//	--daemon SECONDS     leave a process behind that waits so long
//	--breakaway SECONDS  likewise, out of the job object that this one is in
//	--job N SECONDS      run --tree in a job object, and terminate the job after SECONDS
//	--write FILE         write a file
//	--event TEXT         write an error to the event log, with the source sojourn-demo
//	--clocks             for each line of standard input, print the seconds of the wall clock (since 1970) and of the tick count
//	--listen PORT        accept TCP connections, answer each with "sojourn-demo\n"; until ended
//	--pipe NAME          serve the named pipe \\.\pipe\NAME, answering each line with the same line; until ended
//	--service            run as a Windows service until stopped; the options after it are done once it runs
//	--exit N             end with that code
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
)

func main() {
	words := os.Args[1:]
	for len(words) > 0 {
		option := words[0]
		words = words[1:]
		next := func() string {
			if len(words) == 0 {
				stop(64, option+" wants more arguments")
			}
			word := words[0]
			words = words[1:]
			return word
		}
		switch option {
		case "--line":
			fmt.Println(next())
		case "--error":
			fmt.Fprintln(os.Stderr, next())
		case "--lines":
			count, pause := number(next()), seconds(next())
			for i := 1; i <= count; i++ {
				fmt.Println("line", i)
				time.Sleep(pause)
			}
		case "--input":
			line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
			fmt.Println("got", strings.TrimRight(line, "\r\n"))
		case "--sleep":
			time.Sleep(seconds(next()))
		case "--tree":
			depth, text := number(next()), next()
			tree(depth, text)
		case "--daemon":
			leave(next(), 0)
		case "--breakaway":
			leave(next(), windows.CREATE_BREAKAWAY_FROM_JOB)
		case "--job":
			depth, text := next(), next()
			job(depth, seconds(text))
		case "--write":
			check(os.WriteFile(next(), []byte("written\r\n"), 0o644))
		case "--event":
			check(event(next()))
		case "--clocks":
			for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
				ticks, _, _ := tickCount.Call()
				fmt.Printf("%d %.3f\n", time.Now().Unix(), float64(ticks)/1000)
			}
		case "--listen":
			listen(next())
		case "--pipe":
			check(serve(next()))
		case "--service":
			check(svc.Run("", service(words)))
			return
		case "--exit":
			os.Exit(number(next()))
		default:
			stop(64, "no such option: "+option)
		}
	}
}

func stop(code int, why string) {
	fmt.Fprintln(os.Stderr, why)
	os.Exit(code)
}

func check(err error) {
	if err != nil {
		stop(65, err.Error())
	}
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	check(err)
	return value
}

func seconds(text string) time.Duration {
	value, err := strconv.ParseFloat(text, 64)
	check(err)
	return time.Duration(value * float64(time.Second))
}

func self() string {
	path, err := os.Executable()
	check(err)
	return path
}

var tickCount = windows.NewLazySystemDLL("kernel32.dll").NewProc("GetTickCount64")

func event(text string) error {
	log, err := eventlog.Open("sojourn-demo")
	if err != nil {
		return err
	}
	defer log.Close()
	return log.Error(1, text)
}

// leave leaves a process behind.
func leave(seconds string, flags uint32) {
	child := exec.Command(self(), "--sleep", seconds)
	child.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.DETACHED_PROCESS | windows.CREATE_NEW_PROCESS_GROUP | flags}
	check(child.Start())
}

// tree waits, with a chain of processes below that wait as well.
func tree(depth int, text string) {
	if depth > 0 {
		child := exec.Command(self(), "--tree", strconv.Itoa(depth-1), text)
		check(child.Start())
		defer child.Wait()
	}
	time.Sleep(seconds(text))
}

// job runs a tree that would wait for ten minutes in a job object, and ends the job.
func job(depth string, after time.Duration) {
	handle, err := windows.CreateJobObject(nil, nil)
	check(err)
	child := exec.Command(self(), "--tree", depth, "600")
	child.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_SUSPENDED}
	check(child.Start())
	process, err := windows.OpenProcess(windows.PROCESS_ALL_ACCESS, false, uint32(child.Process.Pid))
	check(err)
	check(windows.AssignProcessToJobObject(handle, process))
	resume(uint32(child.Process.Pid))
	time.Sleep(after)
	check(windows.TerminateJobObject(handle, 7))
	child.Wait()
	fmt.Println("job ended, its first process with code", child.ProcessState.ExitCode())
}

// resume starts the only thread of a process that was created suspended.
func resume(pid uint32) {
	snapshot, err := windows.CreateToolhelp32Snapshot(windows.TH32CS_SNAPTHREAD, 0)
	check(err)
	defer windows.CloseHandle(snapshot)
	entry := windows.ThreadEntry32{Size: uint32(28)}
	for err = windows.Thread32First(snapshot, &entry); err == nil; err = windows.Thread32Next(snapshot, &entry) {
		if entry.OwnerProcessID == pid {
			thread, err := windows.OpenThread(windows.THREAD_SUSPEND_RESUME, false, entry.ThreadID)
			check(err)
			_, err = windows.ResumeThread(thread)
			check(err)
			windows.CloseHandle(thread)
		}
	}
}

func listen(port string) {
	listener, err := net.Listen("tcp", ":"+port)
	check(err)
	for {
		client, err := listener.Accept()
		check(err)
		client.Write([]byte("sojourn-demo\n"))
		client.Close()
	}
}

func serve(name string) error {
	path, err := windows.UTF16PtrFromString(`\\.\pipe\` + name)
	if err != nil {
		return err
	}
	for {
		handle, err := windows.CreateNamedPipe(path, windows.PIPE_ACCESS_DUPLEX, windows.PIPE_TYPE_BYTE|windows.PIPE_WAIT,
			windows.PIPE_UNLIMITED_INSTANCES, 65536, 65536, 0, nil)
		if err != nil {
			return err
		}
		if err := windows.ConnectNamedPipe(handle, nil); err != nil && err != windows.ERROR_PIPE_CONNECTED {
			return err
		}
		go func() {
			pipe := os.NewFile(uintptr(handle), name)
			defer pipe.Close()
			lines := bufio.NewReader(pipe)
			for {
				line, err := lines.ReadString('\n')
				if err != nil {
					return
				}
				fmt.Fprint(pipe, line)
			}
		}()
	}
}

// service is a Windows service; its value are the options to do once it runs.
type service []string

func (options service) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (bool, uint32) {
	var child *exec.Cmd
	if len(options) > 0 {
		child = exec.Command(self(), options...)
		if err := child.Start(); err != nil {
			return true, 1
		}
	}
	status <- svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown}
	for request := range requests {
		switch request.Cmd {
		case svc.Interrogate:
			status <- request.CurrentStatus
		case svc.Stop, svc.Shutdown:
			status <- svc.Status{State: svc.StopPending}
			if child != nil {
				child.Process.Kill()
				child.Wait()
			}
			return false, 0
		}
	}
	return false, 0
}
