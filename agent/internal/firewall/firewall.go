// Package firewall opens and closes ports in whatever filters the target's input, and knows its own rules again by name.
package firewall

import (
	"net/netip"
	"strconv"
	"strings"

	"sojourn.example/agent/internal/config"
)

// Kinds, as in deploy.wsdl.
const (
	KindWindows  = "windows"
	KindFirewall = "firewalld"
	KindUFW      = "ufw"
	KindNftables = "nftables"
	KindIptables = "iptables"
	KindLegacy   = "iptables-legacy"
	KindNone     = "none"
)

// Families and protocols, as in deploy.wsdl.
const (
	IPv6 = "ipv6"
	IPv4 = "ipv4"
	TCP  = "tcp"
	UDP  = "udp"
)

// Rule admits a port.
type Rule struct {
	Name     string
	Port     int
	Protocol string
	Family   string // "": both
	Source   string // address or prefix; "": any
	Kind     string // of firewall, in rules that are there
}

// Run is the run that the rule is named after, "" for a kept one.
func (r Rule) Run() string { return RunOf(r.Name) }

// RunOf gives the run id of a rule's name, or "".
func RunOf(name string) string {
	rest, ok := strings.CutPrefix(name, config.Prefix)
	if !ok || len(rest) < 12 || !config.IsRun(rest[:12]) || len(rest) > 12 && rest[12] != '-' {
		return ""
	}
	return rest[:12]
}

const keptPrefix = config.Prefix + "kept-"

// Ours tells whether a rule of this name was made by this project.
func Ours(name string) bool {
	return RunOf(name) != "" || strings.HasPrefix(name, keptPrefix)
}

// PortName is the name of a further port's rule.
func PortName(run, protocol string, port int, keep bool) string {
	middle := run
	if keep {
		middle = "kept"
	}
	return config.Prefix + middle + "-" + protocol + "-" + strconv.Itoa(port)
}

// Firewall is all that filters the target's input, as one.
type Firewall interface {
	// Kind is the foremost of what filters.
	Kind() string
	// Open admits what the rule says through every filter in its way, and gives the rules that are there for it now.
	// Where nothing filters there are none. On an error, nothing it made is left.
	Open(rule Rule) (rules []Rule, changed bool, err error)
	// Close takes back every rule of this project that matches, and makes sure that it is gone.
	Close(match func(Rule) bool) (changed bool, err error)
	// List gives this project's rules, of all runs.
	List() ([]Rule, error)
}

// FamilyOf gives the family of an address or prefix, "" where it is neither.
func FamilyOf(source string) string {
	address, err := netip.ParseAddr(source)
	if err != nil {
		prefix, err := netip.ParsePrefix(source)
		if err != nil {
			return ""
		}
		address = prefix.Addr()
	}
	if address.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

// SameSource tells whether two sources mean the same addresses: tools add and drop /128 and /32 as they like.
func SameSource(a, b string) bool { return normalSource(a) == normalSource(b) }

func normalSource(source string) string {
	if prefix, err := netip.ParsePrefix(source); err == nil {
		if prefix.Bits() == 0 {
			return ""
		}
		if prefix.IsSingleIP() {
			return prefix.Addr().Unmap().String()
		}
		return prefix.Masked().String()
	}
	if address, err := netip.ParseAddr(source); err == nil {
		return address.Unmap().WithZone("").String()
	}
	return source
}
