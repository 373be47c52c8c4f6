//go:build windows

// netsh stands in for the netsh.exe of Windows, which is an empty stub in Wine: it knows `advfirewall firewall
// add|delete|show rule` and `advfirewall show|set ...profile(s) state`, with the exit codes and words of the real one.
//
// The rules are kept in the registry key that Windows uses and are in force when it returns: nft drops what no rule
// allows. What it cannot show: rules bound to a program, a service or a profile are stored and shown, but let traffic
// in for every program; there is no outbound filtering, no IPsec, no group policy, and no other netsh context.
package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/windows/registry"

	"sojourn.lab/programs/internal/firewall"
	"sojourn.lab/programs/internal/host"
)

var errNone = errors.New("No rules match the specified criteria.")

// german are the sentences that callers are tempted to read, as a German Windows says them: for showing that a caller
// goes by the exit code. They are used when HKLM\Software\sojourn-lab has a value Language that is "de".
var german = map[string]string{
	"Ok.":                  "OK.",
	errNone.Error():        "Keine Regeln stimmen mit den angegebenen Kriterien überein.",
	"Deleted %d rule(s).":  "%d Regel(n) gelöscht.",
	"Rule Name":            "Regelname",
	"Enabled":              "Aktiviert",
	"Direction":            "Richtung",
	"Protocol":             "Protokoll",
	"Action":               "Aktion",
	"Yes":                  "Ja",
	"Allow":                "Zulassen",
	"Any":                  "Beliebig",
	"State":                "Status",
	"ON":                   "EIN",
	"%s Profile Settings:": "%s-Profileinstellungen:",
}

// said is a sentence in the target's language.
func said(english string) string {
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, `Software\sojourn-lab`, registry.QUERY_VALUE)
	if err != nil {
		return english
	}
	defer key.Close()
	if language, _, _ := key.GetStringValue("Language"); language == "de" && german[english] != "" {
		return german[english]
	}
	return english
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Printf("\r\n%s\r\n\r\n", said(err.Error()))
		os.Exit(1)
	}
}

func run(words []string) error {
	lower := make([]string, len(words))
	for i, word := range words {
		lower[i] = strings.ToLower(word)
	}
	starts := func(prefix ...string) bool {
		return len(lower) >= len(prefix) && slices.Equal(lower[:len(prefix)], prefix)
	}
	switch {
	case starts("advfirewall", "firewall", "add", "rule"):
		if err := allowed("open", words); err != nil {
			return err
		}
		return add(words[4:])
	case starts("advfirewall", "firewall", "delete", "rule"):
		if err := allowed("close", words); err != nil {
			return err
		}
		return remove(words[4:])
	case starts("advfirewall", "firewall", "show", "rule"):
		return show(words[4:])
	case len(lower) >= 3 && starts("advfirewall", "show") && strings.HasSuffix(strings.TrimSuffix(lower[2], "s"), "profile"):
		return profiles(lower[2])
	}
	return fmt.Errorf("The following command was not found: %s.", strings.Join(words, " "))
}

// allowed returns when a test lets this go on, or with the error that a test wants: see firewall_tool.py.
func allowed(what string, words []string) error {
	answer, err := host.Wait(map[string]any{"firewall_tool": what, "words": strings.Join(words, " ")})
	if err == nil && answer != "ok" {
		err = errors.New(answer)
	}
	return err
}

// options reads NAME=VALUE words; netsh takes the names in any case.
func options(words []string) (map[string]string, error) {
	found := map[string]string{}
	for _, word := range words {
		key, value, assigned := strings.Cut(word, "=")
		key = strings.ToLower(key)
		if !assigned {
			if key == "verbose" {
				continue
			}
			return nil, fmt.Errorf("A specified value is not valid.")
		}
		found[key] = strings.Trim(value, `"`)
	}
	return found, nil
}

func add(words []string) error {
	given, err := options(words)
	if err != nil {
		return err
	}
	rule := firewall.Rule{
		Name: given["name"], Direction: strings.ToLower(given["dir"]), Action: strings.ToLower(given["action"]),
		Protocol: "any", Enabled: true, Program: given["program"], Service: given["service"], Comment: given["description"],
		LocalPorts: []string{}, Remotes: []string{}, Profiles: []string{},
	}
	for key, value := range given {
		low := strings.ToLower(value)
		switch key {
		case "name", "dir", "action", "program", "service", "description", "localip", "remoteport", "interfacetype", "edge", "security":
		case "enable":
			rule.Enabled = low == "yes"
		case "protocol":
			rule.Protocol = low
		case "localport":
			if low != "any" {
				rule.LocalPorts = strings.Split(low, ",")
			}
		case "remoteip":
			if rule.Remotes, err = remotes(low); err != nil {
				return err
			}
		case "profile":
			if low != "any" {
				rule.Profiles = strings.Split(low, ",")
			}
		default:
			return fmt.Errorf("'%s' is not a valid argument for this command.", key)
		}
	}
	if rule.Name == "" || strings.EqualFold(rule.Name, "all") || !slices.Contains([]string{"in", "out"}, rule.Direction) ||
		!slices.Contains([]string{"allow", "block", "bypass"}, rule.Action) {
		return errors.New("One or more essential parameters were not entered.\r\nVerify the required parameters, and reenter them.")
	}
	if len(rule.LocalPorts) > 0 && rule.Protocol != "tcp" && rule.Protocol != "udp" {
		return errors.New("A specified port value is not valid: ports need protocol=TCP or protocol=UDP.")
	}
	for _, port := range rule.LocalPorts {
		for _, end := range strings.Split(port, "-") {
			if number, err := strconv.Atoi(end); err != nil || number < 0 || number > 65535 {
				return errors.New("A specified port value is not valid.")
			}
		}
	}
	err = firewall.Change(func(rules []firewall.Rule) ([]firewall.Rule, error) { return append(rules, rule), nil })
	if err == nil {
		fmt.Print(said("Ok."), "\r\n\r\n")
	}
	return err
}

// remotes reads a comma list of addresses, networks and ranges; an empty list means any.
func remotes(text string) ([]string, error) {
	found := []string{}
	for _, item := range strings.Split(text, ",") {
		switch item {
		case "any":
			return []string{}, nil
		case "localsubnet":
			found = append(found, "fe80::/10", "fd73:6a6f:7572::/48", "198.18.0.0/15")
			continue
		}
		for _, end := range strings.Split(item, "-") {
			_, notAddress := netip.ParseAddr(end)
			_, notNetwork := netip.ParsePrefix(end)
			if notAddress != nil && notNetwork != nil {
				return nil, errors.New("A specified IP address or address keyword is not valid.")
			}
		}
		found = append(found, item)
	}
	return found, nil
}

// matching says whether a rule is meant by the options of delete and show.
func matching(rule firewall.Rule, given map[string]string) bool {
	if name := given["name"]; !strings.EqualFold(name, "all") && !strings.EqualFold(name, rule.Name) {
		return false
	}
	if dir := given["dir"]; dir != "" && !strings.EqualFold(dir, rule.Direction) {
		return false
	}
	if protocol := given["protocol"]; protocol != "" && !strings.EqualFold(protocol, rule.Protocol) {
		return false
	}
	if ports := given["localport"]; ports != "" && ports != strings.Join(rule.LocalPorts, ",") {
		return false
	}
	if ip := given["remoteip"]; ip != "" {
		wanted, err := remotes(strings.ToLower(ip))
		if err != nil || !slices.Equal(wanted, rule.Remotes) {
			return false
		}
	}
	return true
}

func remove(words []string) error {
	given, err := options(words)
	if err != nil {
		return err
	}
	if given["name"] == "" {
		return errors.New("One or more essential parameters were not entered.\r\nVerify the required parameters, and reenter them.")
	}
	removed := 0
	err = firewall.Change(func(rules []firewall.Rule) ([]firewall.Rule, error) {
		left := slices.DeleteFunc(rules, func(rule firewall.Rule) bool { return matching(rule, given) })
		if removed = len(rules) - len(left); removed == 0 {
			return nil, errNone
		}
		return left, nil
	})
	if err == nil {
		fmt.Printf("\r\n"+said("Deleted %d rule(s).")+"\r\n"+said("Ok.")+"\r\n\r\n", removed)
	}
	return err
}

func show(words []string) error {
	given, err := options(words)
	if err != nil {
		return err
	}
	if given["name"] == "" {
		return errors.New("One or more essential parameters were not entered.\r\nVerify the required parameters, and reenter them.")
	}
	rules, err := firewall.All()
	if err != nil {
		return err
	}
	shown := 0
	for _, rule := range rules {
		if !matching(rule, given) {
			continue
		}
		shown++
		fmt.Printf("\r\n%-38s%s\r\n", said("Rule Name")+":", rule.Name)
		fmt.Print(strings.Repeat("-", 70), "\r\n")
		line := func(label, value string) { fmt.Printf("%-38s%s\r\n", said(label)+":", said(value)) }
		line("Enabled", yes(rule.Enabled))
		line("Direction", capital(rule.Direction))
		profiles := "Domain,Private,Public"
		if len(rule.Profiles) > 0 {
			names := []string{}
			for _, profile := range rule.Profiles {
				names = append(names, capital(profile))
			}
			profiles = strings.Join(names, ",")
		}
		line("Profiles", profiles)
		line("Grouping", rule.Grouping)
		line("LocalIP", "Any")
		line("RemoteIP", shownRemotes(rule.Remotes))
		protocol := strings.ToUpper(rule.Protocol)
		if rule.Protocol == "any" {
			protocol = "Any"
		}
		line("Protocol", protocol)
		if rule.Protocol == "tcp" || rule.Protocol == "udp" {
			ports := strings.Join(rule.LocalPorts, ",")
			if ports == "" {
				ports = "Any"
			}
			line("LocalPort", ports)
			line("RemotePort", "Any")
		}
		line("Edge traversal", "No")
		line("Action", capital(rule.Action))
	}
	if shown == 0 {
		return errNone
	}
	fmt.Print(said("Ok."), "\r\n\r\n")
	return nil
}

// shownRemotes writes addresses as netsh does: single ones as networks of one.
func shownRemotes(items []string) string {
	if len(items) == 0 {
		return "Any"
	}
	shown := []string{}
	for _, item := range items {
		if address, err := netip.ParseAddr(item); err == nil {
			item = fmt.Sprintf("%s/%d", address, address.BitLen())
		}
		shown = append(shown, item)
	}
	return strings.Join(shown, ",")
}

// profiles shows the firewall as on in every profile, which here it always is.
func profiles(which string) error {
	names := map[string][]string{
		"allprofiles": {"Domain", "Private", "Public"}, "currentprofile": {"Public"}, "domainprofile": {"Domain"},
		"privateprofile": {"Private"}, "publicprofile": {"Public"},
	}[which]
	if names == nil {
		return fmt.Errorf("The following command was not found: advfirewall show %s.", which)
	}
	for _, name := range names {
		fmt.Printf("\r\n"+said("%s Profile Settings:")+" \r\n%s\r\n%-38s%s\r\n", name, strings.Repeat("-", 70), said("State"), said("ON"))
	}
	fmt.Print(said("Ok."), "\r\n\r\n")
	return nil
}

func capital(word string) string {
	if word == "" {
		return ""
	}
	return strings.ToUpper(word[:1]) + word[1:]
}

func yes(state bool) string {
	if state {
		return "Yes"
	}
	return "No"
}
