package firewall

import (
	"strings"
	"testing"
)

// What reloads a filter drops the agent's rule with it: the keeper must see that, and see it without asking when nothing happened.
func TestReloads(t *testing.T) {
	for _, c := range []struct {
		name, setUp, reload string
		tools               []string
		counted             bool // changes are counted by the kernel
	}{
		{"nft -f", nativeFilter, "nft flush ruleset; " + nativeFilter, []string{"nft"}, true},
		{"iptables-restore of the nft kind", iptablesFilter("-nft"), "iptables-nft-restore < saved4; ip6tables-nft-restore < saved6", []string{"nft", "iptables-nft", "ip6tables-nft"}, true},
		{"iptables-restore of the legacy kind", iptablesFilter("-legacy"), "iptables-legacy-restore < saved4; ip6tables-legacy-restore < saved6", []string{"iptables-legacy", "ip6tables-legacy"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inNamespaces(t, c.tools, func(t *testing.T, connects func(string) bool) {
				in := "cd " + t.TempDir() + "; "
				shell(t, c.setUp)
				if suffix := strings.TrimPrefix(c.tools[len(c.tools)-1], "ip6tables"); suffix != c.tools[len(c.tools)-1] {
					shell(t, in+"iptables"+suffix+"-save > saved4; ip6tables"+suffix+"-save > saved6")
				}
				shell(t, in+c.reload) // makes chains of its own
				before := shell(t, listing)
				real := New().(*walls)
				keeper := Keep(real)
				run := func(r Rule) bool { return r.Run() == "0123456789ab" }
				for _, rule := range []Rule{
					{Name: "sojourn-0123456789ab", Port: port, Protocol: TCP, Family: IPv6, Source: "fd73::2"},
					{Name: "sojourn-0123456789ab-tcp-8080", Port: 8080, Protocol: TCP},
				} {
					if _, changed, err := keeper.Open(rule); err != nil || !changed {
						t.Error(changed, err)
					}
				}
				count := func() int {
					rules, err := real.List()
					if err != nil {
						t.Error(err)
					}
					return len(rules)
				}
				opened := count()
				keeper.Check()
				if real.unchanged() != c.counted {
					t.Error("that nothing changed is not seen, or is where it cannot be")
				}
				shell(t, in+c.reload)
				if connects("fd73::1") || count() != 0 {
					t.Error("the reload dropped nothing: this test shows nothing")
				}
				keeper.Check()
				if !connects("fd73::1") || count() != opened {
					t.Error("the rules are not in force again")
				}
				keeper.Check()
				keeper.Check()
				if count() != opened {
					t.Error("rules multiply")
				}
				keeper.Stop()
				if changed, err := keeper.Close(run); !changed || err != nil {
					t.Error(changed, err)
				}
				keeper.Check()
				if after := shell(t, listing); connects("fd73::1") || after != before {
					t.Errorf("before:\n%s\nafter:\n%s", before, after)
				}
			})
		})
	}
}

// ufwFilter is what ufw makes of the input, as far as it matters here.
func ufwFilter() string {
	script := ""
	for tool, prefix := range map[string]string{"iptables": "ufw", "ip6tables": "ufw6"} {
		script += strings.NewReplacer("TOOL", tool, "UFW", prefix).Replace(`
TOOL -N UFW-before-input
TOOL -N UFW-user-input
TOOL -P INPUT DROP
TOOL -A INPUT -j UFW-before-input
TOOL -A UFW-before-input -m conntrack --ctstate ESTABLISHED -j ACCEPT
TOOL -A UFW-before-input -j UFW-user-input
TOOL -A UFW-user-input -p tcp --dport 62286 -j DROP
`)
	}
	return script + "ip6tables -I ufw6-before-input -p icmpv6 -j ACCEPT\n"
}

// A run's rule on a ufw target is in the kernel alone: ufw's own files, which it loads at boot, never see it.
func TestARunsRuleOfUFWIsForNow(t *testing.T) {
	before := ufwFolders
	defer func() { ufwFolders = before }()
	ufwFolders = []string{t.TempDir()}
	for family, address := range map[string]string{IPv6: "fd73::1", IPv4: "198.18.0.1"} {
		t.Run(family, func(t *testing.T) {
			inNamespaces(t, []string{"nft", "iptables", "ip6tables"}, func(t *testing.T, connects func(string) bool) {
				shell(t, ufwFilter())
				unopened := shell(t, listing)
				source := map[string]string{IPv6: "fd73::2", IPv4: "198.18.0.2"}[family]
				u := &ufw{tool: "/bin/false", ipv6: true} // it must not be asked
				u.chains = ufwChains(u)
				rule := Rule{Name: "sojourn-0123456789ab", Port: port, Protocol: TCP, Family: family, Source: source}
				rules, changed, err := u.open(rule)
				if err != nil || !changed || len(rules) != 1 || rules[0].Kind != KindUFW {
					t.Error(rules, changed, err)
				}
				if !connects(address) {
					t.Error("the opened port cannot be reached")
				}
				if _, changed, err := u.open(rule); changed || err != nil {
					t.Error(changed, err)
				}
				// ufw loads its own rules anew whenever one of them changes.
				shell(t, "iptables -F ufw-user-input; ip6tables -F ufw6-user-input")
				if !connects(address) {
					t.Error("a change of ufw's own rules closed the port")
				}
				shell(t, "iptables -A ufw-user-input -p tcp --dport 62286 -j DROP; ip6tables -A ufw6-user-input -p tcp --dport 62286 -j DROP")
				both := Rule{Name: "sojourn-0123456789ab-tcp-80", Port: 80, Protocol: TCP}
				if rules, changed, err := u.open(both); err != nil || !changed || len(rules) != 2 {
					t.Error(rules, changed, err)
				}
				listed, err := u.list()
				if err != nil || len(listed) != 3 {
					t.Error(listed, err)
				}
				for _, r := range listed {
					if err := u.close(r); err != nil {
						t.Error(err)
					}
				}
				if after := shell(t, listing); connects(address) || after != unopened {
					t.Errorf("before:\n%s\nafter:\n%s", unopened, after)
				}
			})
		})
	}
}
