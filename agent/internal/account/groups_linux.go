// This file sets the supplementary groups of one thread.

package account

import (
	"syscall"
	"unsafe"
)

// threadGroups is setgroups(2) for the calling thread alone; the kernel keeps credentials by thread.
func threadGroups(list []uint32) error {
	_, _, errno := syscall.RawSyscall(syscall.SYS_SETGROUPS, uintptr(len(list)), uintptr(unsafe.Pointer(unsafe.SliceData(list))), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
