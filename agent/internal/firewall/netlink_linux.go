// This file asks the kernel itself for the chains that see incoming packets, so that a filter is known even where its tool is missing.

package firewall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// chain is a base chain of type filter at hook input.
type chain struct {
	family string // of the table, as nft names it: inet, ip, ip6
	table  string
	name   string
	drops  bool // by policy
}

// generation gives the number of the present state of nftables' rules, which grows with every change: NFT_MSG_GETGEN. 0: there is no
// nftables.
func generation() (uint32, error) {
	socket, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, err
	}
	defer unix.Close(socket)
	_ = unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	const header = unix.SizeofNlMsghdr + 4 // and nfgenmsg
	request := make([]byte, header)
	*(*unix.NlMsghdr)(unsafe.Pointer(&request[0])) = unix.NlMsghdr{
		Len: header, Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: unix.NLM_F_REQUEST, Seq: 1,
	}
	if err := unix.Sendto(socket, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	buffer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(socket, buffer, 0)
	if err != nil {
		return 0, err
	}
	if n < header || binary.NativeEndian.Uint16(buffer[4:]) != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
		return 0, errors.New("no generation in the answer") // an error, by kernels before 3.17
	}
	var number uint32
	eachAttribute(buffer[header:n], func(attribute uint16, value []byte) {
		if attribute == generationID && len(value) >= 4 {
			number = binary.BigEndian.Uint32(value)
		}
	})
	return number, nil
}

// generationID is NFTA_GEN_ID.
const generationID = 1

// inputChains dumps the chains by nfnetlink: NFT_MSG_GETCHAIN (linux/netfilter/nf_tables.h).
func inputChains() ([]chain, error) {
	socket, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EPERM) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(socket)
	// A reply that does not come must not hold the agent up.
	_ = unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	const header = unix.SizeofNlMsghdr + 4 // and nfgenmsg
	request := make([]byte, header)
	*(*unix.NlMsghdr)(unsafe.Pointer(&request[0])) = unix.NlMsghdr{
		Len: header, Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETCHAIN, Flags: unix.NLM_F_REQUEST | unix.NLM_F_DUMP, Seq: 1,
	}
	if err := unix.Sendto(socket, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var chains []chain
	buffer := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(socket, buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		more, done, err := parseChains(buffer[:n])
		if err != nil {
			return nil, err
		}
		chains = append(chains, more...)
		if done {
			return chains, nil
		}
	}
}

// parseChains reads a batch of netlink messages.
func parseChains(batch []byte) (chains []chain, done bool, err error) {
	const header = unix.SizeofNlMsghdr
	for len(batch) >= header {
		length := int(binary.NativeEndian.Uint32(batch))
		kind := binary.NativeEndian.Uint16(batch[4:])
		if length < header || length > len(batch) {
			return nil, false, errors.New("a malformed answer")
		}
		body := batch[header:length]
		batch = batch[min(len(batch), (length+3)&^3):]
		switch kind {
		case unix.NLMSG_DONE:
			return chains, true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return nil, false, errors.New("a malformed answer")
			}
			code := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
			// No nf_tables in this kernel, or nobody who may ask: then nothing of it filters that we could change.
			if code == unix.EPERM || code == unix.EOPNOTSUPP || code == unix.EINVAL || code == unix.EPROTONOSUPPORT {
				return nil, true, nil
			}
			return nil, false, code
		case unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWCHAIN:
			if len(body) >= 4 {
				if c, ok := parseChain(body[0], body[4:]); ok {
					chains = append(chains, c)
				}
			}
		}
	}
	return chains, false, nil
}

func parseChain(family byte, attributes []byte) (c chain, ok bool) {
	switch family {
	case unix.NFPROTO_INET:
		c.family = "inet"
	case unix.NFPROTO_IPV4:
		c.family = "ip"
	case unix.NFPROTO_IPV6:
		c.family = "ip6"
	default:
		return c, false
	}
	hook, kind := -1, ""
	eachAttribute(attributes, func(number uint16, value []byte) {
		switch number {
		case unix.NFTA_CHAIN_TABLE:
			c.table = text(value)
		case unix.NFTA_CHAIN_NAME:
			c.name = text(value)
		case unix.NFTA_CHAIN_TYPE:
			kind = text(value)
		case unix.NFTA_CHAIN_POLICY:
			c.drops = len(value) >= 4 && binary.BigEndian.Uint32(value) == 0 // NF_DROP
		case unix.NFTA_CHAIN_HOOK:
			eachAttribute(value, func(number uint16, value []byte) {
				if number == unix.NFTA_HOOK_HOOKNUM && len(value) >= 4 {
					hook = int(binary.BigEndian.Uint32(value))
				}
			})
		}
	})
	return c, hook == unix.NF_INET_LOCAL_IN && kind == "filter"
}

func text(value []byte) string {
	before, _, _ := bytes.Cut(value, []byte{0})
	return string(before)
}

func eachAttribute(attributes []byte, each func(number uint16, value []byte)) {
	for len(attributes) >= 4 {
		length := int(binary.NativeEndian.Uint16(attributes))
		if length < 4 || length > len(attributes) {
			return
		}
		each(binary.NativeEndian.Uint16(attributes[2:])&^uint16(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), attributes[4:length])
		attributes = attributes[min(len(attributes), (length+3)&^3):]
	}
}
