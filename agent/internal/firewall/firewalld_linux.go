// This file is firewalld: rich rules in the zone that the packets come to, in the running configuration; a kept rule also in
// the permanent one.
//
// Rich rules have no name and no comment. What names ours is the prefix of the log entry that each carries: it is seen where
// the rules are listed, it needs no state beside the rule, and it can be found again by who knows nothing but the run.
// The entry itself is of level debug and limited to two a day, the least that firewalld takes.

package firewall

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

type firewalld struct{ tool string }

// findFirewalld gives firewalld where it runs, else nil.
func findFirewalld() filter {
	tool := findTool("firewall-cmd")
	if tool == "" || !processRuns("firewalld") { // asking firewall-cmd --state takes a Python start each time
		return nil
	}
	return &firewalld{tool}
}

// processRuns tells whether a process of this name runs.
func processRuns(name string) bool {
	files, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, file := range files {
		if raw, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(raw)) == name {
			return true
		}
	}
	return false
}

func (f *firewalld) kind() string { return KindFirewall }

func (f *firewalld) needed(string) bool { return true }

// zonedRule is a rule of ours and where it is, with its text as firewalld writes it.
type zonedRule struct {
	Rule
	zone, text string
}

func (f *firewalld) open(rule Rule) (rules []Rule, changed bool, err error) {
	rule.Kind = KindFirewall
	there, err := f.zoned()
	if err != nil {
		return nil, false, err
	}
	zones, err := f.zones(rule)
	if err != nil {
		return nil, false, err
	}
	var made []string
	undo := func() {
		for _, zone := range made {
			_ = f.remove(rule, zone, richRule(rule))
		}
	}
	for _, zone := range zones {
		i := slices.IndexFunc(there, func(z zonedRule) bool { return z.zone == zone && same(z.Rule, rule) })
		if i >= 0 {
			rules = append(rules, there[i].Rule)
			continue
		}
		made = append(made, zone)
		rules = append(rules, rule)
		if err := f.add(rule, zone); err != nil {
			undo()
			return nil, false, err
		}
	}
	return unique(rules), len(made) > 0, nil
}

// add adds the rule to a zone; a kept one also to the permanent configuration, for the next reload and boot.
func (f *firewalld) add(rule Rule, zone string) error {
	_, err := runTool(f.tool, "--zone="+zone, "--add-rich-rule="+richRule(rule))
	if err == nil && rule.Run() == "" {
		_, err = runTool(f.tool, "--permanent", "--zone="+zone, "--add-rich-rule="+richRule(rule))
	}
	return err
}

func (f *firewalld) remove(rule Rule, zone, text string) error {
	_, err := runTool(f.tool, "--zone="+zone, "--remove-rich-rule="+text)
	if rule.Run() == "" {
		_, err2 := runTool(f.tool, "--permanent", "--zone="+zone, "--remove-rich-rule="+text)
		err = errors.Join(err, err2)
	}
	return err
}

// mark is the log prefix: the rule's name without what the rule says itself, as iptables takes 29 characters at most.
func mark(name string) string {
	if run := RunOf(name); run != "" {
		if len(name) == len("sojourn-")+len(run) {
			return name
		}
		return "sojourn-" + run + "-port"
	}
	return strings.TrimSuffix(keptPrefix, "-")
}

// richRule is the rule in firewalld.richlanguage(5).
func richRule(rule Rule) string {
	text := "rule"
	if rule.Family != "" {
		text += ` family="` + rule.Family + `"`
	}
	if rule.Source != "" {
		text += ` source address="` + rule.Source + `"`
	}
	return text + ` port port="` + strconv.Itoa(rule.Port) + `" protocol="` + rule.Protocol + `"` +
		` log prefix="` + mark(rule.Name) + `" level="debug" limit value="2/d" accept`
}

// parseRich reads a rule of ours back.
func parseRich(text string) (rule Rule, ours bool) {
	value := func(key string) string {
		_, rest, ok := strings.Cut(text, key+`="`)
		if !ok {
			return ""
		}
		found, _, _ := strings.Cut(rest, `"`)
		return found
	}
	rule = Rule{Kind: KindFirewall, Family: value("family"), Source: normalSource(value("source address")), Protocol: value("protocol")}
	rule.Port, _ = strconv.Atoi(value("port port"))
	prefix := value("log prefix")
	switch run := RunOf(prefix); {
	case run != "" && strings.HasSuffix(prefix, "-port"):
		rule.Name = PortName(run, rule.Protocol, rule.Port, false)
	case run != "":
		rule.Name = prefix
	case prefix+"-" == keptPrefix:
		rule.Name = PortName("", rule.Protocol, rule.Port, true)
	}
	return rule, rule.Name != ""
}

// zone is an active zone and what makes packets come to it.
type zone struct {
	name                string
	interfaces, sources []string
}

// zones gives the zones that the rule's packets come to: for one address that of its source, else that of the interface it
// is reached by; for many addresses all that are active, and the default one.
func (f *firewalld) zones(rule Rule) ([]string, error) {
	text, err := runTool(f.tool, "--get-active-zones")
	if err != nil {
		return nil, err
	}
	active := parseZones(text)
	address, notOne := netip.ParseAddr(rule.Source)
	if notOne == nil {
		if name := zoneOf(active, address, interfaceTowards(address)); name != "" {
			return []string{name}, nil
		}
	}
	// Interfaces that no zone lists are in the default one.
	standard, err := runTool(f.tool, "--get-default-zone")
	if err != nil {
		return nil, err
	}
	names := []string{strings.TrimSpace(standard)}
	if notOne != nil {
		for _, z := range active {
			if !slices.Contains(names, z.name) {
				names = append(names, z.name)
			}
		}
	}
	return names, nil
}

// parseZones reads `firewall-cmd --get-active-zones`.
func parseZones(text string) (zones []zone) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if line[0] != ' ' && line[0] != '\t' {
			zones = append(zones, zone{name: words[0]}) // newer releases add "(default)"
			continue
		}
		if len(zones) == 0 {
			continue
		}
		switch last := &zones[len(zones)-1]; words[0] {
		case "interfaces:":
			last.interfaces = append(last.interfaces, words[1:]...)
		case "sources:":
			last.sources = append(last.sources, words[1:]...)
		}
	}
	return zones
}

// zoneOf chooses as firewalld does: a zone bound to the source goes before one bound to the interface.
func zoneOf(zones []zone, address netip.Addr, name string) string {
	for _, z := range zones {
		for _, source := range z.sources {
			prefix, err := netip.ParsePrefix(source)
			if err == nil && prefix.Contains(address) || SameSource(source, address.String()) {
				return z.name
			}
		}
	}
	for _, z := range zones {
		if name != "" && slices.Contains(z.interfaces, name) {
			return z.name
		}
	}
	return ""
}

// interfaceTowards gives the interface by which an address is reached, by the kernel's choice; nothing is sent.
func interfaceTowards(address netip.Addr) string {
	connection, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, 9)))
	if err != nil {
		return ""
	}
	defer connection.Close()
	local := connection.LocalAddr().(*net.UDPAddr).IP
	interfaces, err := net.Interfaces()
	if err != nil {
		return ""
	}
	for _, i := range interfaces {
		addresses, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addresses {
			if network, ok := a.(*net.IPNet); ok && network.IP.Equal(local) {
				return i.Name
			}
		}
	}
	return ""
}

// zoned gives our rules in the running configuration of all zones.
func (f *firewalld) zoned() (rules []zonedRule, err error) {
	text, err := runTool(f.tool, "--list-all-zones")
	if err != nil {
		return nil, err
	}
	return parseZonedRules(text), nil
}

func parseZonedRules(text string) (rules []zonedRule) {
	zone := ""
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if line[0] != ' ' && line[0] != '\t' {
			zone = words[0]
			continue
		}
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "rule ") {
			if rule, ours := parseRich(line); ours {
				rules = append(rules, zonedRule{rule, zone, line})
			}
		}
	}
	return rules
}

func (f *firewalld) list() ([]Rule, error) {
	zoned, err := f.zoned()
	var rules []Rule
	for _, z := range zoned {
		rules = append(rules, z.Rule)
	}
	return unique(rules), err
}

func (f *firewalld) close(rule Rule) error {
	zoned, err := f.zoned()
	if err != nil {
		return err
	}
	for _, z := range zoned {
		if !same(z.Rule, rule) {
			continue
		}
		if err := f.remove(rule, z.zone, z.text); err != nil {
			return err
		}
	}
	return nil
}
