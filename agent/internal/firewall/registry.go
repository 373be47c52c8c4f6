// This file reads the firewall rules of Windows in the form that the registry keeps them in.

package firewall

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// wholeFamily are the sources that mean all of one family: netsh takes no prefix of length 0.
var wholeFamily = map[string]string{IPv6: "::/1,8000::/1", IPv4: "0.0.0.0/1,128.0.0.0/1"}

// parseRegistryRule reads a rule of ours as the registry keeps it ([MS-FASP] 2.2.37 in the form of [MS-GPFAS] 2.2.2):
// v2.30|Action=Allow|Active=TRUE|Dir=In|Protocol=6|LPort=62286|RA6=fd73::1|Name=sojourn-...|
func parseRegistryRule(text string) (rule Rule, ours bool) {
	var sources []string
	rule.Kind = KindWindows
	for _, field := range strings.Split(text, "|") {
		name, value, _ := strings.Cut(field, "=")
		switch name {
		case "Name":
			rule.Name = value
		case "Protocol":
			rule.Protocol = map[string]string{"6": TCP, "17": UDP}[value]
		case "LPort":
			rule.Port, _ = strconv.Atoi(value)
		case "RA4", "RA6":
			rule.Family = IPv4
			if name == "RA6" {
				rule.Family = IPv6
			}
			sources = append(sources, plainPrefix(value))
		}
	}
	if joined := strings.Join(sources, ","); joined != wholeFamily[rule.Family] {
		rule.Source = joined
	}
	return rule, Ours(rule.Name)
}

// plainPrefix turns address/mask into address/bits, and a prefix of one address into the address.
func plainPrefix(text string) string {
	if address, mask, ok := strings.Cut(text, "/"); ok {
		if parsed := net.ParseIP(mask); parsed != nil && parsed.To4() != nil {
			ones, _ := net.IPMask(parsed.To4()).Size()
			text = address + "/" + strconv.Itoa(ones)
		}
	}
	if prefix, err := netip.ParsePrefix(text); err == nil && prefix.IsSingleIP() {
		return prefix.Addr().String()
	}
	return text
}
