// This file is ufw. Rules that stay are made by its own command and read in the file that it keeps its rules in, where nothing is
// translated. But its command makes all rules to stay, and a run's must not outlive a reboot: those are put straight into the
// chain of ufw's that sees the input first, by the tool that ufw itself uses. It loads the rules of its command anew without
// touching that chain; a reload of all empties it.

package firewall

import (
	"encoding/hex"
	"errors"
	"os"
	"strconv"
	"strings"
)

type ufw struct {
	tool   string
	ipv6   bool
	chains []ufwChain
}

// ufwChain is the chain that a run's rules are in.
type ufwChain interface {
	filter
	covers(family string) bool
}

// covers tells whether the table is of the family.
func (x *xtables) covers(family string) bool { return family == x.family }

func (t toolless) covers(family string) bool { return family == t.family }

var ufwInput = map[string]string{IPv4: "ufw-before-input", IPv6: "ufw6-before-input"}

// Where ufw keeps the rules that its command made; releases before 0.34 in the second.
var ufwFolders = []string{"/etc/ufw", "/lib/ufw"}

// findUFW gives ufw where it is active, else nil.
func findUFW() filter {
	tool := findTool("ufw")
	if tool == "" || !setting("/etc/ufw/ufw.conf", "ENABLED") {
		return nil
	}
	status, err := runTool(tool, "status")
	if err != nil || !strings.HasPrefix(strings.TrimSpace(status), "Status: active") {
		return nil
	}
	u := &ufw{tool: tool, ipv6: setting("/etc/default/ufw", "IPV6")}
	u.chains = ufwChains(u)
	return u
}

// ufwChains gives the chains that a run's rules go to.
func ufwChains(u *ufw) (chains []ufwChain) {
	for _, family := range []string{IPv4, IPv6} {
		switch tool := findTool(iptablesName(family)); {
		case !u.needed(family):
		case tool == "":
			chains = append(chains, toolless{KindUFW, family, iptablesName(family)})
		default:
			chains = append(chains, &xtables{tool: tool, family: family, name: KindUFW, chain: ufwInput[family]})
		}
	}
	return chains
}

// setting tells whether a shell-like settings file says yes.
func setting(path, name string) bool {
	raw, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	value := ""
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			value = strings.ToLower(strings.Trim(rest, `"'`))
		}
	}
	return value == "yes"
}

func (u *ufw) kind() string { return KindUFW }

func (u *ufw) needed(family string) bool { return family != IPv6 || u.ipv6 }

func (u *ufw) open(rule Rule) (rules []Rule, changed bool, err error) {
	if rule.Run() != "" {
		return u.openForNow(rule)
	}
	rule.Kind = KindUFW
	var made []Rule
	for _, one := range eachFamily(rule, u.needed) {
		all, err := u.all()
		if err != nil {
			return nil, false, err
		}
		if there, ok := lookFor(all, one); ok {
			rules = append(rules, there)
			continue
		}
		// ufw knows a rule by what it admits: with one of somebody else that admits the same, adding ours would put our
		// comment on it, and closing ours would close theirs.
		if admits(all, one) {
			continue
		}
		// prepend, because a rule that denies may stand before, and 'insert 1' is refused for IPv6 while IPv4 rules are there.
		_, err = runTool(u.tool, append([]string{"prepend"}, u.words(one, true)...)...)
		if err != nil { // before 0.36 there is no prepend
			if _, second := runTool(u.tool, append([]string{"insert", strconv.Itoa(u.first(all, one.Family))}, u.words(one, true)...)...); second == nil {
				err = nil
			} else if _, third := runTool(u.tool, u.words(one, true)...); third == nil {
				err = nil
			}
		}
		if err != nil {
			for _, m := range made {
				_ = u.close(m)
			}
			return nil, false, err
		}
		rules, made = append(rules, one), append(made, one)
	}
	return rules, len(made) > 0, nil
}

// openForNow opens until ufw is loaded anew, or the target boots.
func (u *ufw) openForNow(rule Rule) (rules []Rule, changed bool, err error) {
	all, err := u.all()
	if err != nil {
		return nil, false, err
	}
	var made []Rule
	for _, one := range eachFamily(rule, u.needed) {
		if there, ok := lookFor(all, one); ok { // of an agent of an earlier version
			rules = append(rules, there)
			continue
		}
		for _, c := range u.chains {
			if !c.covers(one.Family) {
				continue
			}
			there, new, err := c.open(one)
			if err != nil {
				for _, m := range made {
					_ = u.close(m)
				}
				return nil, false, err
			}
			rules = append(rules, there...)
			if new {
				made = append(made, there...)
			}
		}
	}
	return rules, len(made) > 0, nil
}

// admits tells whether somebody else's rule admits exactly this.
func admits(all []Rule, asked Rule) bool {
	for _, r := range all {
		other := r
		other.Name = asked.Name
		if !Ours(r.Name) && same(other, asked) {
			return true
		}
	}
	return false
}

// first is the position of the family's first rule: IPv6 rules are numbered after the IPv4 ones.
func (u *ufw) first(all []Rule, family string) int {
	position := 1
	for _, r := range all {
		if family == IPv6 && r.Family == IPv4 {
			position++
		}
	}
	return position
}

// words is the rule in the words of ufw. The source also says which family is meant.
func (u *ufw) words(rule Rule, comment bool) []string {
	source := rule.Source
	if source == "" {
		source = map[string]string{IPv4: "0.0.0.0/0", IPv6: "::/0"}[rule.Family]
	}
	words := []string{"allow", "from", source, "to", "any", "port", strconv.Itoa(rule.Port), "proto", rule.Protocol}
	if comment {
		words = append(words, "comment", rule.Name)
	}
	return words
}

// all gives every rule that ufw keeps, ours and others'; those that are not simple ones of a port count as others', nameless.
func (u *ufw) all() (rules []Rule, err error) {
	for _, folder := range ufwFolders {
		found := false
		for _, file := range []struct{ name, family string }{{"user.rules", IPv4}, {"user6.rules", IPv6}} {
			raw, err := os.ReadFile(folder + "/" + file.name)
			if os.IsNotExist(err) {
				continue
			}
			if err != nil {
				return nil, refused(err.Error())
			}
			found = true
			rules = append(rules, parseTuples(string(raw), file.family)...)
		}
		if found {
			break
		}
	}
	return rules, nil
}

// parseTuples reads the lines that ufw itself reads its rules from:
// ### tuple ### allow tcp 62286 ::/0 any fd73::1 in comment=736f6a6f75726e...
func parseTuples(text, family string) (rules []Rule) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, "### tuple ### ")
		if !ok {
			continue
		}
		words := strings.Fields(rest)
		rule := Rule{Kind: KindUFW, Family: family}
		if len(words) >= 6 && words[0] == "allow" && (words[3] == "0.0.0.0/0" || words[3] == "::/0") && words[4] == "any" {
			rule.Protocol = words[1]
			rule.Port, _ = strconv.Atoi(words[2])
			rule.Source = normalSource(words[5])
			for _, word := range words[6:] {
				if coded, ok := strings.CutPrefix(word, "comment="); ok {
					name, _ := hex.DecodeString(coded)
					rule.Name = string(name)
				}
			}
		}
		rules = append(rules, rule)
	}
	return rules
}

func (u *ufw) list() (rules []Rule, err error) {
	all, err := u.all()
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if Ours(r.Name) {
			rules = append(rules, r)
		}
	}
	for _, c := range u.chains {
		there, err := c.list()
		if err != nil {
			return nil, err
		}
		rules = append(rules, there...)
	}
	return unique(rules), nil
}

func (u *ufw) close(rule Rule) error {
	all, err := u.all()
	if err != nil {
		return err
	}
	if _, ok := lookFor(all, rule); ok {
		_, err = runTool(u.tool, append([]string{"delete"}, u.words(rule, false)...)...)
	}
	for _, c := range u.chains {
		if c.covers(rule.Family) {
			err = errors.Join(err, c.close(rule))
		}
	}
	return err
}
