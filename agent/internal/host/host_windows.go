// This file finds the facts on Windows.

package host

import (
	"fmt"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

func systemName() string {
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, `SOFTWARE\Microsoft\Windows NT\CurrentVersion`, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if err != nil {
		return "Windows"
	}
	defer key.Close()
	name, _, err := key.GetStringValue("ProductName")
	if err != nil {
		return "Windows"
	}
	// Windows 11 still calls itself 10 in the registry.
	if windows.RtlGetVersion().BuildNumber >= 22000 && strings.HasPrefix(name, "Windows 10") {
		name = "Windows 11" + strings.TrimPrefix(name, "Windows 10")
	}
	return name
}

func systemVersion() string {
	v := windows.RtlGetVersion()
	return fmt.Sprintf("%d.%d.%d", v.MajorVersion, v.MinorVersion, v.BuildNumber)
}

// bootID is the start of the process that starts services: it lives from boot to shutdown, and unlike the boot time
// that the kernel computes, its start does not move when somebody sets the clock.
func bootID() string {
	var basic windows.PROCESS_BASIC_INFORMATION
	var length uint32
	if windows.NtQueryInformationProcess(windows.CurrentProcess(), windows.ProcessBasicInformation, unsafe.Pointer(&basic), uint32(unsafe.Sizeof(basic)), &length) == nil {
		if start := processStart(uint32(basic.InheritedFromUniqueProcessId)); start != 0 {
			return fmt.Sprintf("%016x", start)
		}
	}
	return fmt.Sprintf("%016x", processStart(4)) // the System process
}

// SinceBoot is the time since the target's boot, sleep included. It does not jump with the wall clock.
func SinceBoot() time.Duration { return windows.DurationSinceBoot() }

// BootID changes with each boot and only then.
func BootID() string { return bootID() }

func processStart(id uint32) int64 {
	process, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, id)
	if err != nil {
		return 0
	}
	defer windows.CloseHandle(process)
	var creation, exit, kernel, user windows.Filetime
	if windows.GetProcessTimes(process, &creation, &exit, &kernel, &user) != nil {
		return 0
	}
	return int64(creation.HighDateTime)<<32 | int64(creation.LowDateTime)
}

func account() string {
	token := windows.GetCurrentProcessToken()
	u, err := token.GetTokenUser()
	if err != nil {
		return ""
	}
	name, domain, _, err := u.User.Sid.LookupAccount("")
	if err != nil {
		return u.User.Sid.String()
	}
	return domain + `\` + name
}

// FreeBytes is the free space of the file system that holds the path, as the agent may use it.
func FreeBytes(path string) (int64, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, err
	}
	var free, total, all uint64
	if err := windows.GetDiskFreeSpaceEx(name, &free, &total, &all); err != nil {
		return 0, err
	}
	return int64(free), nil
}

type memoryCounters struct {
	size                                                         uint32
	pageFaultCount                                               uint32
	peakWorkingSet, workingSet                                   uintptr
	quotaPeakPagedPool, quotaPagedPool                           uintptr
	quotaPeakNonPagedPool, quotaNonPagedPool, pagefile, peakFile uintptr
}

var getProcessMemoryInfo = windows.NewLazySystemDLL("kernel32.dll").NewProc("K32GetProcessMemoryInfo")

// ResidentBytes is the memory that the agent holds.
func ResidentBytes() int64 {
	var counters memoryCounters
	counters.size = uint32(unsafe.Sizeof(counters))
	if ok, _, _ := getProcessMemoryInfo.Call(uintptr(windows.CurrentProcess()), uintptr(unsafe.Pointer(&counters)), uintptr(counters.size)); ok == 0 {
		return 0
	}
	return int64(counters.workingSet)
}
