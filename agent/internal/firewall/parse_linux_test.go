package firewall

import (
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// captured gives what a real tool printed.
func captured(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestParseRuleset(t *testing.T) {
	chains, maps := parseRuleset(captured(t, "nft-mixed.txt"))
	got := make(map[string]string)
	for _, c := range chains {
		state := "passes"
		if c.policyDrops || mayDrop(chains, maps, c, nil) {
			state = "drops"
		}
		if c.hook != "" {
			got[c.family+" "+c.table+" "+c.name] = c.hook + " " + state
		}
	}
	want := map[string]string{
		"inet filter input":    "input drops", // by a map, in a chain that it jumps to
		"inet filter viabase":  "input drops", // by an anonymous map, in a chain that it jumps to
		"inet filter harmless": "input passes",
		"inet filter out":      "output drops",
		"ip6 own in":           "input drops",
		"ip filter INPUT":      "input drops",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	i := slices.IndexFunc(chains, func(c nftChain) bool { return c.name == "input" })
	ours := chains[i].list()
	if want := []Rule{
		{"sojourn-0123456789ab", 62286, TCP, IPv6, "fd73::2", KindNftables},
		{"sojourn-kept-tcp-8080", 8080, TCP, "", "", KindNftables},
		{"sojourn-0123456789ab-udp-53", 53, UDP, IPv6, "", KindNftables},
	}; !reflect.DeepEqual(ours, want) {
		t.Errorf("got %+v", ours)
	}
	if _, handle, _ := chains[i].parse(chains[i].rules[0]); handle != "12" {
		t.Error(handle)
	}
}

func TestParseRulesetOfFirewalld(t *testing.T) {
	chains, maps := parseRuleset(captured(t, "nft-firewalld.txt"))
	i := slices.IndexFunc(chains, func(c nftChain) bool { return c.name == "filter_INPUT" })
	if i < 0 || chains[i].hook != "input" || chains[i].policyDrops || !mayDrop(chains, maps, chains[i], nil) {
		t.Error("its input chain was not found to drop")
	}
}

func TestNftWords(t *testing.T) {
	for _, c := range []struct {
		family string
		rule   Rule
		want   string
	}{
		{"inet", Rule{"sojourn-0123456789ab", 62286, TCP, IPv6, "fd73::1", ""}, `ip6 saddr fd73::1 tcp dport 62286 accept comment "sojourn-0123456789ab"`},
		{"inet", Rule{"n", 53, UDP, IPv4, "", ""}, `meta nfproto ipv4 udp dport 53 accept comment "n"`},
		{"inet", Rule{"n", 80, TCP, "", "", ""}, `tcp dport 80 accept comment "n"`},
		{"ip6", Rule{"n", 80, TCP, IPv6, "", ""}, `tcp dport 80 accept comment "n"`},
	} {
		if got := strings.Join((nftChain{family: c.family}).match(c.rule), " "); got != c.want {
			t.Errorf("got %s\nwant %s", got, c.want)
		}
	}
}

func TestXtables(t *testing.T) {
	chains := parseXtables(captured(t, "ip6tables-legacy.txt"))
	if !xtablesMayDrop(chains, "INPUT", map[string]bool{}) || xtablesMayDrop(chains, "FORWARD", map[string]bool{}) {
		t.Error("a drop in a chain that is jumped to was not found, or one that is not there")
	}
	if !xtablesMayDrop(parseXtables(captured(t, "iptables-nft.txt")), "INPUT", map[string]bool{}) {
		t.Error("the policy was not found")
	}
	x := &xtables{family: IPv6, name: KindLegacy, chain: inputChain}
	words := splitQuoted(chains["INPUT"][1])
	rule, ours := x.parse(words)
	if want := (Rule{"sojourn-0123456789ab", 62286, TCP, IPv6, "fd73::2", KindLegacy}); rule != want || !ours {
		t.Errorf("%+v", rule)
	}
	other := splitQuoted(chains["INPUT"][2])
	if _, ours := x.parse(other); ours || !slices.Contains(other, `say "no" to drops`) {
		t.Errorf("%q", other)
	}
}

func TestManagedChains(t *testing.T) {
	ufws, firewallds := []filter{&ufw{}}, []filter{&firewalld{}}
	rules := "-A INPUT -j ufw-before-logging-input\n-A INPUT -j ufw-before-input\n"
	if !managed(rules, ufws) || managed(rules, firewallds) || managed(rules, nil) {
		t.Error("ufw's chains are its own where it is active, and only there")
	}
	if !managed("-A INPUT -j INPUT_ZONES", firewallds) {
		t.Error("firewalld's chains are its own")
	}
}

func TestUFWTuples(t *testing.T) {
	rules := parseTuples(captured(t, "ufw-user.rules"), IPv4)
	if len(rules) != 5 || rules[0] != (Rule{"sojourn-8399c45152c2", 62286, TCP, IPv4, "198.18.62.2", KindUFW}) ||
		rules[3] != (Rule{"sojourn-8399c45152c2-udp-53", 53, UDP, IPv4, "10.0.0.0/8", KindUFW}) {
		t.Errorf("%+v", rules)
	}
	if !admits(rules, Rule{"sojourn-kept-tcp-22", 22, TCP, IPv4, "", KindUFW}) {
		t.Error("somebody else's rule that admits the same was not seen")
	}
	if admits(rules, Rule{"sojourn-0123456789ab", 62286, TCP, IPv4, "198.18.62.2", KindUFW}) || admits(rules, Rule{"n", 2222, TCP, IPv4, "", KindUFW}) {
		t.Error("a rule of ours, or one that limits, was taken for somebody else's that admits")
	}
	u := &ufw{ipv6: true}
	if got := u.first(append(rules, Rule{Family: IPv6}), IPv6); got != 6 || u.first(rules, IPv4) != 1 {
		t.Error(got)
	}
	if got := strings.Join(u.words(Rule{"sojourn-kept-tcp-443", 443, TCP, IPv6, "", ""}, true), " "); got != "allow from ::/0 to any port 443 proto tcp comment sojourn-kept-tcp-443" {
		t.Error(got)
	}
}

func TestFirewalldRules(t *testing.T) {
	var got []zonedRule
	for _, z := range parseZonedRules(captured(t, "firewalld-zones.txt")) {
		z.text = ""
		got = append(got, z)
	}
	want := []zonedRule{
		{Rule{"sojourn-0123456789ab-tcp-8080", 8080, TCP, IPv4, "10.0.0.1", KindFirewall}, "internal", ""},
		{Rule{"sojourn-kept-tcp-8080", 8080, TCP, "", "", KindFirewall}, "public", ""},
		{Rule{"sojourn-0123456789ab", 62286, TCP, IPv6, "fd73::2", KindFirewall}, "public", ""},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	for _, z := range want {
		if rule, ours := parseRich(richRule(z.Rule)); rule != z.Rule || !ours {
			t.Errorf("%+v became %+v", z.Rule, rule)
		}
		if len(mark(z.Name)) > 29 {
			t.Error("iptables takes no log prefix as long as", mark(z.Name))
		}
	}
}

func TestFirewalldZones(t *testing.T) {
	zones := parseZones(captured(t, "firewalld-active.txt") + "public (default)\n  interfaces: eth0 eth1\n")
	for address, want := range map[string]string{"10.1.2.3": "internal", "192.0.2.1": "public", "fd73::1": "public"} {
		if got := zoneOf(zones, netip.MustParseAddr(address), "eth1"); got != want {
			t.Errorf("%s is in %s", address, got)
		}
	}
	if got := zoneOf(zones, netip.MustParseAddr("192.0.2.1"), "eth2"); got != "" {
		t.Error(got)
	}
}

func TestRegistryRules(t *testing.T) {
	for text, want := range map[string]Rule{
		"v2.30|Action=Allow|Active=TRUE|Dir=In|Protocol=6|LPort=62286|RA6=fd73::1|Name=sojourn-0123456789ab|":                    {"sojourn-0123456789ab", 62286, TCP, IPv6, "fd73::1", KindWindows},
		"v2.10|Action=Allow|Active=TRUE|Dir=In|Protocol=17|LPort=53|RA4=10.0.0.0/255.0.0.0|Name=sojourn-0123456789ab-udp-53|":    {"sojourn-0123456789ab-udp-53", 53, UDP, IPv4, "10.0.0.0/8", KindWindows},
		"v2.30|Action=Allow|Dir=In|Protocol=6|LPort=80|RA6=::/1|RA6=8000::/1|Name=sojourn-kept-tcp-80|":                          {"sojourn-kept-tcp-80", 80, TCP, IPv6, "", KindWindows},
		"v2.30|Action=Allow|Dir=In|Protocol=6|LPort=80|Name=sojourn-kept-tcp-80|Desc=x|":                                         {"sojourn-kept-tcp-80", 80, TCP, "", "", KindWindows},
		"v2.30|Action=Allow|Dir=In|Protocol=6|LPort=62286|RA4=192.0.2.1/255.255.255.255|Name=sojourn-0123456789ab|EmbedCtxt=x|y": {"sojourn-0123456789ab", 62286, TCP, IPv4, "192.0.2.1", KindWindows},
	} {
		if got, ours := parseRegistryRule(text); got != want || !ours {
			t.Errorf("%s\ngot %+v", text, got)
		}
	}
	if _, ours := parseRegistryRule("v2.30|Action=Block|Dir=In|Name=@FirewallAPI.dll,-28545|"); ours {
		t.Error("somebody else's rule was taken for ours")
	}
}

func TestNames(t *testing.T) {
	for name, run := range map[string]string{
		"sojourn-0123456789ab": "0123456789ab", "sojourn-0123456789ab-tcp-80": "0123456789ab", "sojourn-kept-tcp-80": "",
		"sojourn-0123456789abc": "", "sojourn-0123456789AB": "", "sojourn-": "", "other": "", "xsojourn-0123456789ab": "",
	} {
		if got := RunOf(name); got != run {
			t.Errorf("%s is of run %q", name, got)
		}
	}
	if PortName("0123456789ab", TCP, 80, false) != "sojourn-0123456789ab-tcp-80" || PortName("0123456789ab", UDP, 53, true) != "sojourn-kept-udp-53" {
		t.Error(PortName("0123456789ab", TCP, 80, false))
	}
	for _, pair := range [][2]string{{"fd73::1", "fd73:0::1/128"}, {"10.0.0.0/8", "10.1.2.3/8"}, {"192.0.2.1", "192.0.2.1/32"}, {"", "::/0"}, {"0.0.0.0/0", ""}} {
		if !SameSource(pair[0], pair[1]) {
			t.Error(pair)
		}
	}
	if SameSource("fd73::1", "fd73::2") || FamilyOf("fd73::/64") != IPv6 || FamilyOf("::ffff:192.0.2.1") != IPv4 || FamilyOf("x") != "" {
		t.Error("sources are mixed up")
	}
}

func TestMalformedNetlinkAnswers(t *testing.T) {
	for _, batch := range [][]byte{nil, {1}, make([]byte, 16), slices.Repeat([]byte{0xff}, 64), {16, 0, 0, 0, 2, 0}} {
		if chains, _, _ := parseChains(batch); len(chains) != 0 {
			t.Error(chains)
		}
	}
	if _, done, err := parseChains([]byte{20, 0, 0, 0, unix.NLMSG_DONE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}); !done || err != nil {
		t.Error(done, err)
	}
	if _, ok := parseChain(unix.NFPROTO_INET, []byte{3, 0, 1, 0, 9, 0}); ok {
		t.Error("a malformed chain was taken")
	}
}
