// This file is iptables and ip6tables, of the nft and the legacy kind: a rule at the head of INPUT, known again by its comment.

package firewall

import (
	"os"
	"slices"
	"strconv"
	"strings"
)

func iptablesName(family string) string {
	if family == IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

// findIptables gives the tool of the variant, or "". Which one a plain 'iptables' is, it says itself.
func findIptables(family string, legacy bool) string {
	name, suffix := iptablesName(family), "-nft"
	if legacy {
		suffix = "-legacy"
	}
	if tool := findTool(name + suffix); tool != "" {
		return tool
	}
	tool := findTool(name)
	if tool == "" {
		return ""
	}
	version, err := runTool(tool, "-V")
	if err != nil || strings.Contains(version, "nf_tables") == legacy { // versions before 1.8 are legacy and do not say so
		return ""
	}
	return tool
}

const inputChain = "INPUT"

// xtables is the filter table of one family.
type xtables struct {
	tool      string
	family    string
	name      string
	chain     string // where our rules are
	filtering bool
}

func newXtables(tool, family, kind string, managers []filter) (*xtables, error) {
	x := &xtables{tool: tool, family: family, name: kind, chain: inputChain}
	rules, err := x.run("-S")
	if err != nil {
		return nil, err
	}
	chains := parseXtables(rules)
	x.filtering = !managed(strings.Join(chains[inputChain], "\n"), managers) && xtablesMayDrop(chains, inputChain, make(map[string]bool))
	return x, nil
}

// findLegacy gives the legacy filter table of a family where there is one. Asking the tool where there is
// none would make one.
func findLegacy(family string, managers []filter) (filter, error) {
	names, err := tableNames(family)
	if err != nil || !slices.Contains(names, "filter") {
		return nil, nil
	}
	tool := findIptables(family, true)
	if tool == "" {
		drops, err := legacyPolicyDrops(family)
		if err != nil || !drops {
			return nil, nil
		}
		return toolless{KindLegacy, family, iptablesName(family)}, nil
	}
	return newXtables(tool, family, KindLegacy, managers)
}

// tableNames gives the legacy tables of a family that there are.
func tableNames(family string) ([]string, error) {
	file := "ip_tables_names"
	if family == IPv6 {
		file = "ip6_tables_names"
	}
	names, err := os.ReadFile("/proc/thread-self/net/" + file) // this thread's network namespace; all threads have one but in tests
	if err != nil {
		names, err = os.ReadFile("/proc/net/" + file) // kernels before 3.17
	}
	return strings.Fields(string(names)), err
}

func (x *xtables) run(arguments ...string) (string, error) {
	return runTool(x.tool, append([]string{"-w", "-t", "filter"}, arguments...)...)
}

// parseXtables reads `iptables -S`: the lines of each chain, its policy among them.
func parseXtables(text string) map[string][]string {
	chains := make(map[string][]string)
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) >= 2 {
			chains[words[1]] = append(chains[words[1]], strings.TrimSpace(line))
		}
	}
	return chains
}

// xtablesMayDrop tells whether the chain can drop a packet, itself or in a chain that it jumps to.
func xtablesMayDrop(chains map[string][]string, name string, seen map[string]bool) bool {
	if seen[name] {
		return false
	}
	seen[name] = true
	for _, line := range chains[name] {
		words := splitQuoted(line)
		if words[0] == "-P" && len(words) >= 3 && words[2] == "DROP" {
			return true
		}
		for i, w := range words {
			if (w == "-j" || w == "-g") && i+1 < len(words) {
				target := words[i+1]
				if target == "DROP" || target == "REJECT" || xtablesMayDrop(chains, target, seen) {
					return true
				}
			}
		}
	}
	return false
}

// splitQuoted splits a line of iptables -S into words; only double quotes and backslashes are used there.
func splitQuoted(line string) (words []string) {
	var word strings.Builder
	inWord, inQuotes, escaped := false, false, false
	for _, c := range line {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case c == '\\' && inQuotes:
			escaped = true
		case c == '"':
			inQuotes = !inQuotes
			inWord = true
		case (c == ' ' || c == '\t') && !inQuotes:
			if inWord {
				words = append(words, word.String())
				word.Reset()
			}
			inWord = false
		default:
			word.WriteRune(c)
			inWord = true
		}
	}
	if inWord {
		words = append(words, word.String())
	}
	return words
}

func (x *xtables) kind() string { return x.name }

func (x *xtables) needed(family string) bool {
	return x.filtering && (family == "" || family == x.family)
}

func (x *xtables) open(rule Rule) (rules []Rule, changed bool, err error) {
	rule.Family, rule.Kind = x.family, x.name
	there, err := x.list()
	if err != nil {
		return nil, false, err
	}
	if found, ok := lookFor(there, rule); ok {
		return []Rule{found}, false, nil
	}
	arguments := []string{"-I", x.chain, "1"}
	if rule.Source != "" {
		arguments = append(arguments, "-s", rule.Source)
	}
	arguments = append(arguments, "-p", rule.Protocol, "-m", rule.Protocol, "--dport", strconv.Itoa(rule.Port),
		"-m", "comment", "--comment", rule.Name, "-j", "ACCEPT")
	if _, err := x.run(arguments...); err != nil {
		return nil, false, err
	}
	return []Rule{rule}, true, nil
}

func (x *xtables) list() ([]Rule, error) {
	lines, err := x.lines()
	if err != nil {
		return nil, err
	}
	var rules []Rule
	for _, words := range lines {
		rule, _ := x.parse(words)
		rules = append(rules, rule)
	}
	return unique(rules), nil
}

// lines gives the words of this project's rules in the chain.
func (x *xtables) lines() (lines [][]string, err error) {
	text, err := x.run("-S", x.chain)
	if err != nil && x.chain != inputChain {
		return nil, nil // a chain that is not there has none
	}
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(text) {
		if words := splitQuoted(strings.TrimSpace(line)); len(words) > 2 {
			if _, ok := x.parse(words); ok {
				lines = append(lines, words)
			}
		}
	}
	return lines, nil
}

// parse reads a rule of ours: -A INPUT -s fd73::1/128 -p tcp -m tcp --dport 62286 -m comment --comment sojourn-... -j ACCEPT
func (x *xtables) parse(words []string) (rule Rule, ours bool) {
	rule = Rule{Family: x.family, Kind: x.name}
	for i := 0; i+1 < len(words); i++ {
		switch next := words[i+1]; words[i] {
		case "-s":
			rule.Source = normalSource(next)
		case "-p":
			rule.Protocol = next
		case "--dport":
			rule.Port, _ = strconv.Atoi(next)
		case "--comment":
			rule.Name = next
		}
	}
	return rule, Ours(rule.Name)
}

func (x *xtables) close(rule Rule) error {
	lines, err := x.lines()
	if err != nil {
		return err
	}
	for _, words := range lines {
		if there, ok := x.parse(words); ok && same(there, rule) {
			if _, err := x.run(append([]string{"-D"}, words[1:]...)...); err != nil {
				return err
			}
		}
	}
	return nil
}
