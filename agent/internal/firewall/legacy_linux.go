// This file reads the policy of a legacy filter table from the kernel, for targets where the tool is missing.

package firewall

import (
	"encoding/binary"
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/netfilter_ipv4/ip_tables.h and linux/netfilter_ipv6/ip6_tables.h; the two differ in numbers only.
const (
	getInfo    = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
	getEntries = 65
	tableName  = 32
	localIn    = 1  // NF_INET_LOCAL_IN
	infoSize   = 84 // struct ipt_getinfo: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size
)

// legacyPolicyDrops tells whether the policy of INPUT is DROP.
func legacyPolicyDrops(family string) (bool, error) {
	domain, level, entryHead := unix.AF_INET, unix.SOL_IP, 112 // sizeof(struct ipt_entry)
	if family == IPv6 {
		domain, level, entryHead = unix.AF_INET6, unix.SOL_IPV6, 168 // sizeof(struct ip6t_entry)
	}
	socket, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return false, err
	}
	defer unix.Close(socket)
	info := make([]byte, infoSize)
	copy(info, "filter")
	if err := getOption(socket, level, getInfo, info); err != nil {
		return false, err
	}
	underflow := int(binary.NativeEndian.Uint32(info[tableName+4+20+4*localIn:]))
	size := int(binary.NativeEndian.Uint32(info[infoSize-4:]))
	const head = tableName + 8 // struct ipt_get_entries: name, size, and padding before the entries
	if size < 0 || size > 64<<20 {
		return false, errors.New("a malformed answer")
	}
	entries := make([]byte, head+size)
	copy(entries, "filter")
	binary.NativeEndian.PutUint32(entries[tableName:], uint32(size))
	if err := getOption(socket, level, getEntries, entries); err != nil {
		return false, err
	}
	return policyDrops(entries[head:], underflow, entryHead)
}

// policyDrops reads the verdict of a chain's last entry, which is its policy.
func policyDrops(entries []byte, underflow, entryHead int) (bool, error) {
	const targetHead = 32 // struct xt_entry_target; the standard target's verdict follows
	at := underflow + entryHead + targetHead
	if underflow < 0 || at+4 > len(entries) {
		return false, errors.New("a malformed answer")
	}
	return int32(binary.NativeEndian.Uint32(entries[at:])) == -1, nil // -NF_DROP - 1
}

func getOption(socket, level, option int, value []byte) error {
	length := uint32(len(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(socket), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
