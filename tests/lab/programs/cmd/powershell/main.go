//go:build windows

// powershell stands in for powershell.exe, which Wine doesn't have, for two callers alone: it knows, word for word, the scripts
// that ansible.windows.win_reboot sends, and those of the way in by WinRM, and does what each would do. It is no PowerShell: whatever else it gets, it refuses.
// Where a test wants to see what Ansible sends, it has it written down and answered: see recordings.
//
// What it cannot show: how long the real one takes to start, that it may fail while Windows starts or stops, its encodings and
// CLIXML; and LogonUI, for whose registry key win_reboot waits: here the key is there, whenever it is asked for.
package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"unicode/utf16"
	"unsafe"

	"golang.org/x/sys/windows"
)

const (
	before = "Set-StrictMode -Version Latest\n"
	after  = "\nIf (-not $?) { If (Get-Variable LASTEXITCODE -ErrorAction SilentlyContinue) { exit $LASTEXITCODE } Else { exit 1 } }"
	key    = `'HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Winlogon\AutoLogonChecked'`

	bootTime = "(Get-CimInstance -ClassName Win32_OperatingSystem -Property LastBootUpTime).LastBootUpTime.ToFileTime()"
	abort    = "shutdown.exe /a"

	// As ansible-core sends it: without indentation and empty lines.
	rebootBegins = "$ErrorActionPreference = 'Continue'\nif ($True) {\nRemove-Item -LiteralPath " + key + " -Force -ErrorAction SilentlyContinue\n}\n" +
		"$stdout = $null\n$stderr = . { shutdown.exe "
	rebootEnds = " | Set-Variable stdout } 2>&1 | ForEach-Object ToString\nConvertTo-Json -Compress -InputObject @{\n" +
		"stdout = (@($stdout) -join \"`n\")\nstderr = (@($stderr) -join \"`n\")\nrc = $LASTEXITCODE\n}"
)

var (
	words  = []string{"-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Unrestricted", "-EncodedCommand"}
	reboot = regexp.MustCompile(`^` + regexp.QuoteMeta(rebootBegins) + `/r /t (\d+) /c '((?:[^']|'')*)'` + regexp.QuoteMeta(rebootEnds) + `$`)
	test   = regexp.MustCompile(`^` + regexp.QuoteMeta("Get-Item -LiteralPath "+key+" -ErrorAction Stop; ") + `'(success-[0-9a-f-]{36})'$`)

	errUnknown = errors.New("the lab's powershell.exe knows only what win_reboot sends, and the way in by WinRM")
)

func main() {
	err := record()
	code := 1
	if err == nil {
		code, err = run(os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

// run does what the script among the arguments says, and gives back PowerShell's exit code.
func run(arguments []string) (int, error) {
	script, err := scriptOf(arguments)
	if err != nil {
		return 0, err
	}
	switch {
	case script == bootTime:
		start, err := lastBoot()
		if err == nil {
			fmt.Print(start, "\r\n")
		}
		return 0, err
	case script == abort:
		result, err := shutdown("/a")
		fmt.Print(result.Stdout)
		return result.Code, err
	}
	if found := place.FindStringSubmatch(script); found != nil {
		return placeAgent(found[1], found[2], found[3])
	}
	if found := start.FindStringSubmatch(script); found != nil {
		return startAgent(found[1], found[2], found[3], found[4])
	}
	if found := reboot.FindStringSubmatch(script); found != nil {
		result, err := shutdown("/r", "/t", found[1], "/c", strings.ReplaceAll(found[2], "''", "'"))
		if err != nil {
			return 0, err
		}
		said, err := json.Marshal(result)
		fmt.Print(string(said), "\r\n")
		return 0, err
	}
	if found := test.FindStringSubmatch(script); found != nil {
		fmt.Print("\r\n\r\n    Hive: HKEY_LOCAL_MACHINE\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion\\Winlogon\r\n\r\n", found[1], "\r\n")
		return 0, nil
	}
	return 0, errUnknown
}

// scriptOf decodes the script, and takes off it what Ansible puts around a command.
func scriptOf(arguments []string) (string, error) {
	if len(arguments) != len(words)+1 || !slices.Equal(arguments[:len(words)], words) {
		return "", errUnknown
	}
	data, err := base64.StdEncoding.DecodeString(arguments[len(words)])
	if err != nil || len(data)%2 != 0 {
		return "", errUnknown
	}
	units := make([]uint16, len(data)/2)
	for i := range units {
		units[i] = uint16(data[2*i]) | uint16(data[2*i+1])<<8
	}
	script := string(utf16.Decode(units))
	if inner, wrapped := strings.CutPrefix(script, before); wrapped {
		if inner, wrapped = strings.CutSuffix(inner, after); wrapped {
			return inner, nil
		}
	}
	return script, nil
}

type result struct {
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr"`
	Code   int    `json:"rc"`
}

// shutdown calls shutdown.exe, which is a stand-in as well.
func shutdown(arguments ...string) (result, error) {
	var stdout, stderr strings.Builder
	command := exec.Command("shutdown.exe", arguments...)
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	if ended := new(exec.ExitError); err != nil && !errors.As(err, &ended) {
		return result{}, err
	}
	lines := func(text string) string { return strings.TrimSuffix(strings.ReplaceAll(text, "\r\n", "\n"), "\n") }
	return result{lines(stdout.String()), lines(stderr.String()), command.ProcessState.ExitCode()}, nil
}

// lastBoot is the start of services.exe, which lives from boot to shutdown.
func lastBoot() (int64, error) {
	snapshot, err := windows.CreateToolhelp32Snapshot(windows.TH32CS_SNAPPROCESS, 0)
	if err != nil {
		return 0, err
	}
	defer windows.CloseHandle(snapshot)
	entry := windows.ProcessEntry32{Size: uint32(unsafe.Sizeof(windows.ProcessEntry32{}))}
	for err = windows.Process32First(snapshot, &entry); err == nil; err = windows.Process32Next(snapshot, &entry) {
		if strings.EqualFold(windows.UTF16ToString(entry.ExeFile[:]), "services.exe") {
			return startOf(entry.ProcessID)
		}
	}
	return 0, fmt.Errorf("services.exe: %w", err)
}

func startOf(id uint32) (int64, error) {
	process, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, id)
	if err != nil {
		return 0, err
	}
	defer windows.CloseHandle(process)
	var creation, exit, kernel, user windows.Filetime
	if err := windows.GetProcessTimes(process, &creation, &exit, &kernel, &user); err != nil {
		return 0, err
	}
	return int64(creation.HighDateTime)<<32 | int64(creation.LowDateTime), nil
}
