//go:build windows

// Package firewall keeps the rules of the stand-in Windows firewall where Windows keeps them, in the registry, and
// has them enforced by the packet filter of the Linux that Wine runs on.
package firewall

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"sojourn.lab/programs/internal/host"
)

const (
	store   = `SYSTEM\CurrentControlSet\Services\SharedAccess\Parameters\FirewallPolicy\FirewallRules`
	version = "v2.30"
)

// Rule is one rule as netsh shows it.
type Rule struct {
	ID         string   `json:"-"`
	Name       string   `json:"name"`
	Enabled    bool     `json:"enabled"`
	Direction  string   `json:"direction"` // in or out
	Action     string   `json:"action"`    // allow or block
	Protocol   string   `json:"protocol"`  // tcp, udp, icmpv4, icmpv6, any or a number
	LocalPorts []string `json:"localports"`
	Remotes    []string `json:"remotes"`
	Profiles   []string `json:"profiles"`
	Program    string   `json:"program"`
	Service    string   `json:"service"`
	Grouping   string   `json:"grouping"`
	Comment    string   `json:"comment"`
}

var protocolNumbers = map[string]string{"tcp": "6", "udp": "17", "icmpv4": "1", "icmpv6": "58"}

// text is the rule in the form of a value under FirewallRules ([MS-GPFAS] 2.2.2.19).
func (r Rule) text() string {
	fields := []string{version, "Action=" + capital(r.Action), "Active=" + strings.ToUpper(strconv.FormatBool(r.Enabled)),
		"Dir=" + capital(r.Direction)}
	if r.Protocol != "any" {
		number, known := protocolNumbers[r.Protocol]
		if !known {
			number = r.Protocol
		}
		fields = append(fields, "Protocol="+number)
	}
	for _, profile := range r.Profiles {
		fields = append(fields, "Profile="+capital(profile))
	}
	for _, port := range r.LocalPorts {
		if strings.Contains(port, "-") {
			fields = append(fields, "LPort2_10="+port)
		} else {
			fields = append(fields, "LPort="+port)
		}
	}
	for _, remote := range r.Remotes {
		if strings.Contains(remote, ":") {
			fields = append(fields, "RA6="+remote)
		} else {
			fields = append(fields, "RA4="+remote)
		}
	}
	for key, value := range map[string]string{"App": r.Program, "Svc": r.Service} {
		if value != "" {
			fields = append(fields, key+"="+value)
		}
	}
	fields = append(fields, "Name="+r.Name)
	if r.Comment != "" {
		fields = append(fields, "Desc="+r.Comment)
	}
	if r.Grouping != "" {
		fields = append(fields, "EmbedCtxt="+r.Grouping)
	}
	return strings.Join(fields, "|") + "|"
}

func parse(id, text string) (Rule, bool) {
	rule := Rule{ID: id, Protocol: "any", LocalPorts: []string{}, Remotes: []string{}, Profiles: []string{}}
	fields := strings.Split(text, "|")
	if len(fields) < 2 || !strings.HasPrefix(fields[0], "v2.") {
		return rule, false
	}
	for _, field := range fields[1:] {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "Action":
			rule.Action = strings.ToLower(value)
		case "Active":
			rule.Enabled = value == "TRUE"
		case "Dir":
			rule.Direction = strings.ToLower(value)
		case "Protocol":
			rule.Protocol = value
			for name, number := range protocolNumbers {
				if number == value {
					rule.Protocol = name
				}
			}
		case "Profile":
			rule.Profiles = append(rule.Profiles, strings.ToLower(value))
		case "LPort", "LPort2_10":
			rule.LocalPorts = append(rule.LocalPorts, value)
		case "RA4", "RA6":
			rule.Remotes = append(rule.Remotes, value)
		case "App":
			rule.Program = value
		case "Svc":
			rule.Service = value
		case "Name":
			rule.Name = value
		case "Desc":
			rule.Comment = value
		case "EmbedCtxt":
			rule.Grouping = value
		}
	}
	return rule, rule.Name != "" && rule.Action != "" && rule.Direction != ""
}

func capital(word string) string {
	if word == "" {
		return ""
	}
	return strings.ToUpper(word[:1]) + word[1:]
}

// All are the stored rules, in the order of their ids.
func All() ([]Rule, error) {
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, store, registry.QUERY_VALUE)
	if err == registry.ErrNotExist {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer key.Close()
	names, err := key.ReadValueNames(0)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	rules := []Rule{}
	for _, name := range names {
		text, _, err := key.GetStringValue(name)
		if err != nil {
			continue
		}
		if rule, good := parse(name, text); good {
			rules = append(rules, rule)
		}
	}
	return rules, nil
}

// Change runs f on the stored rules, stores what it gives back, and returns once that is in force.
func Change(f func([]Rule) ([]Rule, error)) error {
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()
	before, err := All()
	if err != nil {
		return err
	}
	after, err := f(slices.Clone(before))
	if err != nil {
		return err
	}
	if err := apply(after); err != nil {
		return err
	}
	key, _, err := registry.CreateKey(registry.LOCAL_MACHINE, store, registry.SET_VALUE)
	if err != nil {
		return err
	}
	defer key.Close()
	kept := map[string]bool{}
	for _, rule := range after {
		if rule.ID == "" {
			guid, err := windows.GenerateGUID()
			if err != nil {
				return err
			}
			rule.ID = guid.String()
		}
		kept[rule.ID] = true
		if err := key.SetStringValue(rule.ID, rule.text()); err != nil {
			return err
		}
	}
	for _, rule := range before {
		if !kept[rule.ID] {
			if err := key.DeleteValue(rule.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// Restore puts the stored rules in force, as Windows does when it starts.
func Restore() error {
	return Change(func(rules []Rule) ([]Rule, error) { return rules, nil })
}

// lock keeps two netsh at once from losing each other's rule.
func lock() (func(), error) {
	name, err := windows.UTF16PtrFromString(`Global\sojourn-lab-firewall`)
	if err != nil {
		return nil, err
	}
	mutex, err := windows.CreateMutex(nil, false, name)
	if mutex == 0 {
		return nil, err
	}
	if state, err := windows.WaitForSingleObject(mutex, 30_000); state != windows.WAIT_OBJECT_0 && state != windows.WAIT_ABANDONED {
		return nil, fmt.Errorf("the firewall is busy: %v", err)
	}
	return func() { windows.ReleaseMutex(mutex); windows.CloseHandle(mutex) }, nil
}

// apply has the packet filter take these rules and no others.
func apply(rules []Rule) error {
	if rules == nil {
		rules = []Rule{}
	}
	answer, err := host.Ask(map[string]any{"firewall": rules})
	if err == nil && answer != "ok" {
		err = fmt.Errorf("the packet filter refused: %s", answer)
	}
	return err
}
