// This file is native nftables: rules at the head of each chain that filters the input, known again by their comment.

package firewall

import (
	"errors"
	"slices"
	"strconv"
	"strings"
)

// tables are the nftables chains that see the input, changed by nft. Those that do not filter are looked through too, when
// rules are listed and closed: they may have filtered when a rule was made.
type tables struct {
	nft    string
	chains []nftChain
}

// nftChain is a chain as nft lists it.
type nftChain struct {
	family, table, name string
	hook                string // "": not a base chain
	policyDrops         bool
	rules               []string // with their handles
	filtering           bool     // a rule is needed here
}

// findTables sorts the kernel's chains into those of nft and those of iptables' nft variant.
func findTables(chains []chain, managers []filter) (filters []filter, err error) {
	nft := findTool("nft")
	var listed []nftChain
	var maps map[string]bool
	if nft != "" {
		output, err := runTool(nft, "-a", "-nn", "list", "ruleset")
		if err != nil {
			return nil, err
		}
		listed, maps = parseRuleset(output)
	}
	mine := &tables{nft: nft}
	for _, c := range chains {
		if c.table == "firewalld" && has(managers, KindFirewall) {
			continue
		}
		family := map[string]string{"ip": IPv4, "ip6": IPv6}[c.family]
		i := slices.IndexFunc(listed, func(l nftChain) bool { return l.family == c.family && l.table == c.table && l.name == c.name })
		filtering := c.drops
		if i >= 0 {
			filtering = (listed[i].policyDrops || mayDrop(listed, maps, listed[i], nil)) && !managed(strings.Join(listed[i].rules, "\n"), managers)
		}
		if family != "" && c.table == "filter" && c.name == "INPUT" {
			// Made by iptables-nft. Its own tool keeps it consistent; nft is good where that is missing.
			if tool := findIptables(family, false); tool != "" {
				x, err := newXtables(tool, family, KindIptables, managers)
				if err != nil {
					return nil, err
				}
				filters = append(filters, x)
				continue
			}
			if filtering && nft == "" {
				filters = append(filters, toolless{KindIptables, family, iptablesName(family)})
				continue
			}
		}
		if filtering && nft == "" {
			filters = append(filters, toolless{KindNftables, family, "nft"})
		}
		if i >= 0 {
			listed[i].filtering = filtering
			mine.chains = append(mine.chains, listed[i])
		}
	}
	if len(mine.chains) > 0 {
		filters = append([]filter{mine}, filters...)
	}
	return filters, nil
}

// managed tells whether a chain is that of a manager which is asked itself.
func managed(rules string, managers []filter) bool {
	return has(managers, KindUFW) && (strings.Contains(rules, "ufw-before-input") || strings.Contains(rules, "ufw6-before-input")) ||
		has(managers, KindFirewall) && (strings.Contains(rules, "INPUT_ZONES") || strings.Contains(rules, "INPUT_direct"))
}

// parseRuleset reads `nft -a -nn list ruleset`: its chains, and the maps (by family, table and name) that hold a drop.
func parseRuleset(text string) (chains []nftChain, dropMaps map[string]bool) {
	dropMaps = make(map[string]bool)
	var family, table, set string
	var current *nftChain
	depth := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		bare := unquoted(line)
		if i := strings.Index(bare, " # handle"); i >= 0 {
			bare = bare[:i]
		}
		words := strings.Fields(bare)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		if bare == "}" && depth > 0 {
			depth--
			switch depth {
			case 1:
				if current != nil {
					chains = append(chains, *current)
				}
				current, set = nil, ""
			}
			continue
		}
		switch {
		case depth == 0 && words[0] == "table" && len(words) >= 3:
			family, table = words[1], words[2]
		case depth == 1 && words[0] == "chain" && len(words) >= 2:
			current = &nftChain{family: family, table: table, name: words[1]}
		case depth == 1 && len(words) >= 2:
			set = words[1]
		case current != nil && words[0] == "type" && slices.Contains(words, "hook"):
			current.hook = words[slices.Index(words, "hook")+1]
			current.policyDrops = strings.Contains(bare, "policy drop")
			if !strings.Contains(line, "type filter ") {
				current.hook = "" // nat and route chains do not filter
			}
		case current != nil:
			current.rules = append(current.rules, line)
		case set != "" && verdictDrops(words):
			dropMaps[family+" "+table+" "+set] = true
		}
		// A rule's own braces close on its line; what opens at a line's end is a block.
		if strings.HasSuffix(bare, "{") {
			depth++
		}
	}
	return chains, dropMaps
}

// unquoted blanks what stands in double quotes: a comment may say 'drop'.
func unquoted(line string) string {
	var out strings.Builder
	inside := false
	for _, c := range line {
		if c == '"' {
			inside = !inside
			continue
		}
		if !inside {
			out.WriteRune(c)
		}
	}
	return out.String()
}

func verdictDrops(words []string) bool {
	for _, w := range words {
		if w = strings.Trim(w, ",;{}"); w == "drop" || w == "reject" {
			return true
		}
	}
	return false
}

// mayDrop tells whether a packet can be dropped in the chain or in one that it jumps to.
func mayDrop(all []nftChain, maps map[string]bool, c nftChain, seen map[string]bool) bool {
	if seen == nil {
		seen = make(map[string]bool)
	}
	if seen[c.name] {
		return false
	}
	seen[c.name] = true
	for _, rule := range c.rules {
		bare := unquoted(rule)
		if i := strings.Index(bare, " # handle"); i >= 0 {
			bare = bare[:i]
		}
		words := strings.Fields(bare)
		if verdictDrops(words) {
			return true
		}
		for i, w := range words {
			if i+1 == len(words) {
				break
			}
			next := strings.Trim(words[i+1], ",;{}")
			switch w {
			case "jump", "goto":
				for _, other := range all {
					if other.family == c.family && other.table == c.table && other.name == next && mayDrop(all, maps, other, seen) {
						return true
					}
				}
			case "vmap":
				if maps[c.family+" "+c.table+" "+strings.TrimPrefix(next, "@")] {
					return true
				}
			}
		}
	}
	return false
}

func (t *tables) kind() string { return KindNftables }

func (t *tables) needed(family string) bool {
	return slices.ContainsFunc(t.chains, func(c nftChain) bool { return c.filtering && (family == "" || c.covers(family)) })
}

func (c nftChain) covers(family string) bool {
	return c.family == "inet" || c.family == "ip" && family == IPv4 || c.family == "ip6" && family == IPv6
}

func (t *tables) open(rule Rule) (rules []Rule, changed bool, err error) {
	rule.Kind = KindNftables
	var made []Rule
	for i := range t.chains {
		c := &t.chains[i]
		if !c.filtering {
			continue
		}
		asked := []Rule{rule}
		if rule.Family != "" || c.family != "inet" {
			asked = eachFamily(rule, c.covers)
		}
		for _, one := range asked {
			if there, ok := lookFor(c.list(), one); ok {
				rules = append(rules, there)
				continue
			}
			arguments := append([]string{"insert", "rule", c.family, c.table, c.name}, c.match(one)...)
			if _, err := runTool(t.nft, arguments...); err != nil {
				for _, m := range made {
					_ = t.close(m)
				}
				return nil, false, err
			}
			rules, made = append(rules, one), append(made, one)
		}
	}
	return unique(rules), len(made) > 0, nil
}

// unique drops what several chains have in common.
func unique(rules []Rule) (kept []Rule) {
	for _, r := range rules {
		if !slices.Contains(kept, r) {
			kept = append(kept, r)
		}
	}
	return kept
}

// match is the rule in the words of nft.
func (c nftChain) match(rule Rule) []string {
	var words []string
	short := map[string]string{IPv4: "ip", IPv6: "ip6"}[rule.Family]
	switch {
	case rule.Source != "":
		words = append(words, short, "saddr", rule.Source)
	case rule.Family != "" && c.family == "inet":
		words = append(words, "meta", "nfproto", rule.Family)
	}
	return append(words, rule.Protocol, "dport", strconv.Itoa(rule.Port), "accept", "comment", `"`+rule.Name+`"`)
}

// list gives this project's rules in the chain.
func (c nftChain) list() (rules []Rule) {
	for _, line := range c.rules {
		if rule, _, ok := c.parse(line); ok {
			rules = append(rules, rule)
		}
	}
	return rules
}

// parse reads a rule of ours: ip6 saddr fd73::1 tcp dport 62286 accept comment "sojourn-..." # handle 7
func (c nftChain) parse(line string) (rule Rule, handle string, ok bool) {
	words := strings.Fields(line)
	rule = Rule{Kind: KindNftables, Family: map[string]string{"ip": IPv4, "ip6": IPv6}[c.family]}
	for i := 0; i+1 < len(words); i++ {
		next := words[i+1]
		switch words[i] {
		case "saddr":
			rule.Source = next
			if i > 0 {
				rule.Family = map[string]string{"ip": IPv4, "ip6": IPv6}[words[i-1]]
			}
		case "nfproto":
			rule.Family = map[string]string{"ipv4": IPv4, "2": IPv4, "ipv6": IPv6, "10": IPv6}[next] // numbers, as -nn asks for
		case "dport":
			rule.Port, _ = strconv.Atoi(next)
			if i > 0 {
				rule.Protocol = words[i-1]
			}
		case "comment":
			rule.Name = strings.Trim(next, `"`)
		case "handle":
			handle = next
		}
	}
	return rule, handle, Ours(rule.Name) && handle != ""
}

func (t *tables) list() (rules []Rule, err error) {
	if err := t.refresh(); err != nil {
		return nil, err
	}
	for _, c := range t.chains {
		rules = append(rules, c.list()...)
	}
	return unique(rules), nil
}

func (t *tables) refresh() error {
	output, err := runTool(t.nft, "-a", "-nn", "list", "ruleset")
	if err != nil {
		return err
	}
	chains, _ := parseRuleset(output)
	for i := range t.chains {
		mine := &t.chains[i]
		mine.rules = nil
		for _, c := range chains {
			if c.family == mine.family && c.table == mine.table && c.name == mine.name {
				mine.rules = c.rules
			}
		}
	}
	return nil
}

// close deletes the rule in every chain, by the handles that it has now: they tell rules apart whatever their order.
func (t *tables) close(rule Rule) error {
	if err := t.refresh(); err != nil {
		return err
	}
	var failed error
	for _, c := range t.chains {
		for _, line := range c.rules {
			if there, handle, ok := c.parse(line); ok && same(there, rule) {
				if _, err := runTool(t.nft, "delete", "rule", c.family, c.table, c.name, "handle", handle); err != nil {
					failed = errors.Join(failed, err)
				}
			}
		}
	}
	return failed
}
