// This file is the entrance on Linux: a port of the loopback, to which sshd connects. Other users of the target get as far as that
// port as well, and no further than strangers get at an open one: both ends are pinned.

package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/config"
)

// loopbacks are the addresses in the order to try them. A name would be sshd's to look up. First that of the family which the controller has
// come by: an sshd that is held to one family (AddressFamily) connects to no other.
func loopbacks(c *config.Config) []string {
	for _, address := range c.ControllerAddresses {
		if parsed, err := netip.ParseAddr(address); err == nil && parsed.Is4() {
			return []string{"127.0.0.1", "::1"}
		}
	}
	return []string{"::1", "127.0.0.1"}
}

// listen takes the first free port of the range: one that is known beforehand can be named in sshd's PermitOpen.
func listen(c *config.Config) (*Entrance, error) {
	for _, address := range loopbacks(c) {
		for port := c.Ports.First; port <= c.Ports.Last; port++ {
			listener, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(port)))
			if err == nil {
				return &Entrance{Listener: listener, Place: address, Port: port}, nil
			}
			if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
				break // without IPv6 there is no ::1
			}
		}
	}
	return nil, catalogue.New("SD-601", "ports", c.Ports.String())
}
