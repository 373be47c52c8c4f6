// This file starts and kills process trees on Windows: each in a job object of its own, in a hidden console that speaks UTF-8.

package process

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/windows"

	"sojourn.example/agent/internal/catalogue"
)

// killedCode is the exit code of a process that was killed.
const killedCode = 1

const codePageUTF8 = 65001

// procThreadAttributeJobList is PROC_THREAD_ATTRIBUTE_JOB_LIST, which the library does not name.
const procThreadAttributeJobList = 0x2000d

var (
	kernel32                 = windows.NewLazySystemDLL("kernel32.dll")
	allocConsole             = kernel32.NewProc("AllocConsole")
	setConsoleCP             = kernel32.NewProc("SetConsoleCP")
	setConsoleOutputCP       = kernel32.NewProc("SetConsoleOutputCP")
	setConsoleCtrlHandler    = kernel32.NewProc("SetConsoleCtrlHandler")
	generateConsoleCtrlEvent = kernel32.NewProc("GenerateConsoleCtrlEvent")
)

// console makes the one console that all programs share, on first need. Sharing it is what lets CTRL_BREAK reach them,
// and it saves each program a conhost.exe of its own. A service's console is in session 0, where nobody sees it.
// False: there is none, and each program gets one without window.
var console = sync.OnceValue(func() bool {
	if ok, _, _ := allocConsole.Call(); ok == 0 {
		return false
	}
	setConsoleCP.Call(codePageUTF8)
	setConsoleOutputCP.Call(codePageUTF8)
	// Having a console makes the agent one of those who hear of CTRL_C, CTRL_BREAK and of any user's logging off: none is
	// for it, and who does not say so is ended.
	setConsoleCtrlHandler.Call(windows.NewCallback(func(uintptr) uintptr { return 1 }), 1)
	return true
})

type tree struct {
	process windows.Handle
	job     windows.Handle
	id      uint32
	once    sync.Once
}

// homeDirectory is that of the agent's own account; the system's, where that has none.
func homeDirectory() (string, error) {
	if home, err := os.UserHomeDir(); err == nil {
		if info, err := os.Stat(home); err == nil && info.IsDir() {
			return home, nil
		}
	}
	return windows.GetSystemDirectory()
}

func start(r *Request, folder, _ string, files [3]*os.File, coming func(id int)) (child, error) {
	if r.User != "" {
		return nil, catalogue.New("SD-504", "detail", "User is for Linux targets")
	}
	line, program := r.CommandLine, firstWord(r.CommandLine)
	if len(r.Arguments) > 0 {
		line, program = windows.ComposeCommandLine(r.Arguments), r.Arguments[0]
	}
	directory := r.Directory
	if directory == "" && r.MayOutlive { // as long as it runs, the agent's folder could not be removed if it were its own
		var err error
		if directory, err = homeDirectory(); err != nil {
			return nil, startError(program, err)
		}
	} else if directory == "" {
		directory = folder
	} else if info, err := os.Stat(directory); err != nil {
		return nil, catalogue.New("SD-706", "path", directory, "detail", detailOf(err))
	} else if !info.IsDir() {
		return nil, catalogue.New("SD-706", "path", directory, "detail", "it is not a folder")
	}
	wideLine, err := windows.UTF16PtrFromString(line)
	if err != nil {
		return nil, catalogue.New("SD-504", "detail", "the command line is malformed")
	}
	wideDirectory, err := windows.UTF16PtrFromString(directory)
	if err != nil {
		return nil, catalogue.New("SD-504", "detail", "the working directory is malformed")
	}
	environment, err := environmentBlock(r.Environment)
	if err != nil {
		return nil, err
	}

	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return nil, startError(program, err)
	}
	// Breakaway is allowed: installers that start a service's helper or an updater expect it. Once the process runs, the job does not
	// kill on close: what a task left running on purpose outlives the agent. Until then it does: an agent that is killed just now
	// would leave a process that never begins, and never ends.
	limit(job, windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE)

	var inherited [3]windows.Handle
	defer func() {
		for _, h := range inherited {
			if h != 0 {
				windows.CloseHandle(h)
			}
		}
	}()
	self := windows.CurrentProcess()
	for i, f := range files {
		if err := windows.DuplicateHandle(self, windows.Handle(f.Fd()), self, &inherited[i], 0, true, windows.DUPLICATE_SAME_ACCESS); err != nil {
			windows.CloseHandle(job)
			return nil, startError(program, err)
		}
	}
	startup := windows.StartupInfoEx{}
	startup.Cb = uint32(unsafe.Sizeof(startup))
	startup.Flags = windows.STARTF_USESTDHANDLES | windows.STARTF_USESHOWWINDOW
	startup.ShowWindow = windows.SW_HIDE
	startup.StdInput, startup.StdOutput, startup.StdErr = inherited[0], inherited[1], inherited[2]
	// Suspended, so that no child of it is born before it is in the job.
	flags := uint32(windows.CREATE_SUSPENDED | windows.CREATE_UNICODE_ENVIRONMENT | windows.CREATE_NEW_PROCESS_GROUP | windows.EXTENDED_STARTUPINFO_PRESENT)
	if !console() {
		flags |= windows.CREATE_NO_WINDOW
	}
	create := func(jobs []windows.Handle) (made windows.ProcessInformation, err error) {
		attributes, err := windows.NewProcThreadAttributeList(2)
		if err != nil {
			return made, err
		}
		defer attributes.Delete()
		// Only these handles: another process that starts at the same time must not hold this one's pipes open.
		if err := attributes.Update(windows.PROC_THREAD_ATTRIBUTE_HANDLE_LIST, unsafe.Pointer(&inherited[0]), unsafe.Sizeof(inherited)); err != nil {
			return made, err
		}
		if len(jobs) > 0 {
			if err := attributes.Update(procThreadAttributeJobList, unsafe.Pointer(&jobs[0]), uintptr(len(jobs))*unsafe.Sizeof(jobs[0])); err != nil {
				return made, err
			}
		}
		startup.ProcThreadAttributeList = attributes.List()
		err = windows.CreateProcess(nil, wideLine, nil, nil, true, flags, &environment[0], wideDirectory, &startup.StartupInfo, &made)
		return made, err
	}
	// Born in the job: one that is put there afterwards would stay, and never begin, if the agent were killed in between. Windows
	// before 10 and Server 2016 knows no such attribute, and a packaged program is born in a job of the system's.
	made, err := create([]windows.Handle{job})
	born := err == nil
	if err == windows.ERROR_NOT_SUPPORTED || err == windows.ERROR_INVALID_PARAMETER || err == windows.ERROR_ACCESS_DENIED {
		made, err = create(nil)
	}
	runtime.KeepAlive(files)
	if err != nil {
		windows.CloseHandle(job)
		return nil, startError(program, err)
	}
	defer windows.CloseHandle(made.Thread)
	if !born {
		if err := windows.AssignProcessToJobObject(job, made.Process); err != nil {
			_ = windows.TerminateProcess(made.Process, killedCode)
			windows.CloseHandle(made.Process)
			windows.CloseHandle(job)
			return nil, startError(program, err)
		}
	}
	coming(int(made.ProcessId))
	if _, err := windows.ResumeThread(made.Thread); err != nil {
		_ = windows.TerminateJobObject(job, killedCode)
		windows.CloseHandle(made.Process)
		windows.CloseHandle(job)
		return nil, startError(program, err)
	}
	limit(job, 0)
	return &tree{process: made.Process, job: job, id: made.ProcessId}, nil
}

func limit(job windows.Handle, flags uint32) {
	limits := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{}
	limits.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_BREAKAWAY_OK | flags
	_, _ = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation, uintptr(unsafe.Pointer(&limits)), uint32(unsafe.Sizeof(limits)))
}

func detailOf(err error) string {
	if p, ok := err.(*os.PathError); ok {
		return p.Err.Error()
	}
	return err.Error()
}

// firstWord names the program of a command line, for messages: the rest may hold what is nobody's business.
func firstWord(line string) string {
	line = strings.TrimSpace(line)
	if strings.HasPrefix(line, `"`) {
		word, _, _ := strings.Cut(line[1:], `"`)
		return filepath.Base(word)
	}
	word, _, _ := strings.Cut(line, " ")
	return filepath.Base(word)
}

// environmentBlock is the agent's environment with the additions; names are the same whatever their case.
func environmentBlock(additions []Variable) ([]uint16, error) {
	variables := os.Environ()
	for _, v := range additions {
		if v.Name == "" || strings.ContainsAny(v.Name, "=\x00") || strings.ContainsRune(v.Value, 0) {
			return nil, catalogue.New("SD-504", "detail", "an environment variable's name or value is malformed")
		}
		kept := variables[:0]
		for _, old := range variables {
			// The hidden variables of each drive begin with '=': their name is what comes before the second one.
			if i := strings.IndexByte(old[1:], '=') + 1; i <= 0 || !strings.EqualFold(old[:i], v.Name) {
				kept = append(kept, old)
			}
		}
		variables = append(kept, v.Name+"="+v.Value)
	}
	var block []uint16
	for _, v := range variables {
		wide, err := windows.UTF16FromString(v)
		if err != nil {
			return nil, err
		}
		block = append(block, wide...) // with its zero
	}
	return append(block, 0, 0), nil
}

func (t *tree) wait() int64 {
	_, _ = windows.WaitForSingleObject(t.process, windows.INFINITE)
	var code uint32
	_ = windows.GetExitCodeProcess(t.process, &code)
	return int64(code)
}

func (t *tree) signal(name string, all bool) error {
	switch {
	case name == Interrupt:
		// CTRL_BREAK goes to a process group; the process leads one.
		if ok, _, err := generateConsoleCtrlEvent.Call(windows.CTRL_BREAK_EVENT, uintptr(t.id)); ok == 0 {
			return catalogue.New("SD-706", "path", "the process's console", "detail", err.Error())
		}
		return nil
	case all:
		t.kill()
		return nil
	default:
		return windows.TerminateProcess(t.process, killedCode)
	}
}

func (t *tree) kill() { _ = windows.TerminateJobObject(t.job, killedCode) }

func (t *tree) processID() int { return int(t.id) }

// commandProgram names the program that runs a command line.
func commandProgram(line string) string { return firstWord(line) }

func (t *tree) forget() {
	t.once.Do(func() {
		windows.CloseHandle(t.job)
		windows.CloseHandle(t.process)
	})
}

// Outlive has nothing to do: what still runs keeps its job until it ends.
func Outlive() {}

// EndWarm has nothing to do either: no interpreter is kept warm.
func EndWarm() {}

// Leader and MayRun are for processes whose id is not known when they are announced. Here it always is.
func Leader(string) int { return 0 }

// MayRun: see Leader.
func MayRun(string) bool { return false }

// KillTree ends the tree of a process that an agent which is no more has started. Its job can be reached no more; its descendants
// are found by their parents. The caller holds the process, so that its id is nobody else's.
func KillTree(_ string, id int) {
	snapshot, err := windows.CreateToolhelp32Snapshot(windows.TH32CS_SNAPPROCESS, 0)
	if err != nil {
		return
	}
	defer windows.CloseHandle(snapshot)
	children := make(map[uint32][]uint32)
	entry := windows.ProcessEntry32{}
	entry.Size = uint32(unsafe.Sizeof(entry))
	for err = windows.Process32First(snapshot, &entry); err == nil; err = windows.Process32Next(snapshot, &entry) {
		children[entry.ParentProcessID] = append(children[entry.ParentProcessID], entry.ProcessID)
	}
	killTree(uint32(id), 0, children, make(map[uint32]bool))
}

// killTree ends a process that is no older than its parent: an older one is the child of somebody whose id the parent has now.
func killTree(id uint32, born int64, children map[uint32][]uint32, seen map[uint32]bool) {
	process, err := windows.OpenProcess(windows.PROCESS_TERMINATE|windows.PROCESS_QUERY_LIMITED_INFORMATION, false, id)
	if err != nil || seen[id] {
		return
	}
	defer windows.CloseHandle(process)
	seen[id] = true
	var creation, exit, kernel, user windows.Filetime
	if windows.GetProcessTimes(process, &creation, &exit, &kernel, &user) != nil || creation.Nanoseconds() < born {
		return
	}
	_ = windows.TerminateProcess(process, killedCode)
	for _, child := range children[id] {
		killTree(child, creation.Nanoseconds(), children, seen)
	}
}

// anonymousFile makes a file in the folder that is gone once it is closed.
func anonymousFile(folder string) (*os.File, error) {
	file, err := os.CreateTemp(folder, "spool-")
	if err != nil {
		return nil, err
	}
	name := file.Name()
	file.Close()
	wide, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return nil, err
	}
	handle, err := windows.CreateFile(wide, windows.GENERIC_READ|windows.GENERIC_WRITE,
		windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE, nil, windows.OPEN_EXISTING,
		windows.FILE_ATTRIBUTE_TEMPORARY|windows.FILE_FLAG_DELETE_ON_CLOSE, 0)
	if err != nil {
		_ = os.Remove(name)
		return nil, err
	}
	return os.NewFile(uintptr(handle), name), nil
}
