package firewall

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sojourn.example/agent/internal/catalogue"
)

// Here real tools change real filters, in network namespaces made for the test: client (fd73::2) – target (fd73::1).

const port = 62286

// inNamespaces runs the test's work in a new target namespace and gives a function that connects to it from the client.
func inNamespaces(t *testing.T, tools []string, work func(t *testing.T, connects func(address string) bool)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: only root may make network namespaces")
	}
	for _, tool := range append(tools, "ip") {
		if findTool(tool) == "" {
			t.Skip("needs " + tool + ", which is not installed")
		}
	}
	name := fmt.Sprintf("sojourn-test-%d", os.Getpid())
	client, target := name+"-c", name+"-t"
	ip := func(arguments ...string) {
		t.Helper()
		if text, err := exec.Command(findTool("ip"), arguments...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v %s", arguments, err, text)
		}
	}
	for _, namespace := range []string{client, target} {
		ip("netns", "add", namespace)
		t.Cleanup(func() { _ = exec.Command(findTool("ip"), "netns", "del", namespace).Run() })
	}
	ip("link", "add", "sj0", "netns", client, "type", "veth", "peer", "sj0", "netns", target)
	for namespace, last := range map[string]string{target: "1", client: "2"} {
		ip("-n", namespace, "link", "set", "lo", "up")
		ip("-n", namespace, "addr", "add", "fd73::"+last+"/64", "dev", "sj0", "nodad")
		ip("-n", namespace, "addr", "add", "198.18.0."+last+"/24", "dev", "sj0")
		ip("-n", namespace, "link", "set", "sj0", "up")
	}
	inside := func(namespace string, do func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // never unlocked: the thread stays in the namespace and ends
			handle, err := os.Open("/run/netns/" + namespace)
			if err == nil {
				err = unix.Setns(int(handle.Fd()), unix.CLONE_NEWNET)
				handle.Close()
			}
			if err != nil {
				t.Error(err)
				return
			}
			do()
		}()
		<-done
	}
	connects := func(address string) (ok bool) {
		inside(client, func() { // a raw connect: Go's own dialer would hop to other threads
			ok = connect(address)
		})
		return ok
	}
	inside(target, func() {
		listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Error(err)
			return
		}
		defer listener.Close()
		for _, address := range []string{"fd73::1", "198.18.0.1"} {
			for tries := 0; !connects(address); tries++ { // a new link takes a moment
				if tries == 20 {
					t.Errorf("%s cannot be reached without a filter", address)
					return
				}
			}
		}
		// The tools are children of this thread, and so in its namespace.
		work(t, connects)
	})
}

func connect(address string) bool {
	target := net.ParseIP(address)
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: port, Addr: [16]byte(target.To16())})
	if four := target.To4(); four != nil {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: [4]byte(four)}
	}
	socket, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(socket)
	if err := unix.Connect(socket, to); !errors.Is(err, unix.EINPROGRESS) {
		return err == nil
	}
	if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(socket), Events: unix.POLLOUT}}, 300); n != 1 {
		return false
	}
	code, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_ERROR)
	return err == nil && code == 0
}

func shell(t *testing.T, script string) string {
	t.Helper()
	command := exec.Command("/bin/sh", "-ec", script)
	command.Env = []string{"PATH=" + toolPath}
	text, err := command.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v: %s", script, err, text)
	}
	return string(text)
}

const icmp = "icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert } accept"

const nativeFilter = `nft -f - <<END
table inet mine {
	chain input {
		type filter hook input priority 0; policy drop;
		ct state established accept
		` + icmp + `
		tcp dport 22 accept
		reject with tcp reset
	}
}
END
`

// twoFilters need a rule each: a packet must pass both.
const twoFilters = nativeFilter + `nft -f - <<END
table ip6 second {
	chain other { drop; }
	chain in {
		type filter hook input priority 50; policy accept;
		ct state established accept
		` + icmp + `
		goto other
	}
}
END
`

func iptablesFilter(suffix string) string {
	return `for tool in iptables` + suffix + ` ip6tables` + suffix + `; do
	$tool -P INPUT DROP
	$tool -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
done
ip6tables` + suffix + ` -A INPUT -p icmpv6 -j ACCEPT
`
}

const listing = `nft list ruleset 2>/dev/null | sed 's/counter packets [0-9]* bytes [0-9]*//'
[ ! -s /proc/net/ip_tables_names ] || iptables-legacy -S
[ ! -s /proc/net/ip6_tables_names ] || ip6tables-legacy -S`

func TestRealFilters(t *testing.T) {
	for _, c := range []struct {
		name, setUp, kind string
		tools             []string
		families          []string
	}{
		{"native nftables", nativeFilter, KindNftables, []string{"nft"}, []string{IPv6, IPv4}},
		{"two filters", twoFilters, KindNftables, []string{"nft"}, []string{IPv6, IPv4}},
		{"iptables of the nft kind", iptablesFilter("-nft"), KindIptables, []string{"nft", "iptables-nft", "ip6tables-nft"}, []string{IPv6, IPv4}},
		{"iptables of the legacy kind", iptablesFilter("-legacy"), KindLegacy, []string{"iptables-legacy", "ip6tables-legacy"}, []string{IPv6, IPv4}},
		{"nftables and legacy", nativeFilter + iptablesFilter("-legacy"), KindNftables, []string{"nft", "ip6tables-legacy"}, []string{IPv6, IPv4}},
	} {
		for _, family := range c.families {
			t.Run(c.name+" "+family, func(t *testing.T) {
				inNamespaces(t, c.tools, func(t *testing.T, connects func(string) bool) {
					testFilter(t, c.setUp, c.kind, family, connects)
				})
			})
		}
	}
}

func testFilter(t *testing.T, setUp, kind, family string, connects func(string) bool) {
	address, source := "fd73::1", "fd73::2"
	if family == IPv4 {
		address, source = "198.18.0.1", "198.18.0.2"
	}
	shell(t, setUp)
	before := shell(t, listing)
	if connects(address) {
		t.Error("the filter does not filter")
		return
	}
	walls := New()
	name := "sojourn-0123456789ab"
	ask := Rule{Name: name, Port: port, Protocol: TCP, Family: family, Source: source}
	rules, changed, err := walls.Open(ask)
	if err != nil || !changed || len(rules) == 0 || walls.Kind() != kind {
		t.Error(rules, changed, err, walls.Kind())
		return
	}
	if !connects(address) {
		t.Error("the opened port cannot be reached")
	}
	if again, changed, err := walls.Open(ask); err != nil || changed || len(again) != len(rules) {
		t.Error(again, changed, err)
	}
	// Other runs' rules, kept ones, and one with another source at the same port must survive.
	for _, other := range []Rule{
		{Name: "sojourn-ba9876543210", Port: port, Protocol: TCP, Family: family, Source: "fd73::9"},
		{Name: "sojourn-kept-tcp-8080", Port: 8080, Protocol: TCP},
	} {
		if family == IPv4 && other.Source != "" {
			other.Source = "198.18.0.9"
		}
		if _, changed, err := walls.Open(other); err != nil || !changed {
			t.Error(other, changed, err)
		}
	}
	listed, err := walls.List()
	if err != nil {
		t.Error(err)
	}
	names := make(map[string]bool)
	for _, r := range listed {
		names[r.Name] = true
	}
	if len(names) != 3 {
		t.Error(listed)
	}
	if changed, err := walls.Close(func(r Rule) bool { return r.Name == name }); !changed || err != nil {
		t.Error(changed, err)
	}
	if connects(address) {
		t.Error("the closed port can be reached")
	}
	if changed, err := walls.Close(func(r Rule) bool { return r.Name == name }); changed || err != nil {
		t.Error(changed, err)
	}
	if changed, err := walls.Close(func(r Rule) bool { return true }); !changed || err != nil {
		t.Error(changed, err)
	}
	if after := shell(t, listing); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestNothingFilters(t *testing.T) {
	for name, setUp := range map[string]string{
		"no tables":          "true",
		"an accepting chain": "nft add table inet a; nft add chain inet a in '{ type filter hook input priority 0; policy accept; }'; nft add rule inet a in counter comment '\"drop\"'",
		"only the output":    "nft add table inet a; nft add chain inet a out '{ type filter hook output priority 0; policy drop; }'",
	} {
		t.Run(name, func(t *testing.T) {
			inNamespaces(t, []string{"nft"}, func(t *testing.T, _ func(string) bool) {
				shell(t, setUp)
				before := shell(t, listing)
				walls := New()
				rules, changed, err := walls.Open(Rule{Name: "sojourn-0123456789ab", Port: port, Protocol: TCP, Family: IPv6, Source: "fd73::2"})
				if len(rules) != 0 || changed || err != nil || walls.Kind() != KindNone || shell(t, listing) != before {
					t.Error(rules, changed, err, walls.Kind())
				}
			})
		})
	}
}

func TestOnlyTheFamilyInUse(t *testing.T) {
	inNamespaces(t, []string{"nft"}, func(t *testing.T, _ func(string) bool) {
		shell(t, "nft add table ip a; nft add chain ip a in '{ type filter hook input priority 0; policy drop; }'")
		walls := New()
		if rules, changed, err := walls.Open(Rule{Name: "sojourn-0123456789ab", Port: port, Protocol: TCP, Family: IPv6, Source: "fd73::2"}); len(rules) != 0 || changed || err != nil {
			t.Error(rules, changed, err)
		}
		if rules, changed, err := walls.Open(Rule{Name: "sojourn-0123456789ab", Port: port, Protocol: TCP, Family: IPv4, Source: "198.18.0.2"}); len(rules) != 1 || !changed || err != nil {
			t.Error(rules, changed, err)
		}
	})
}

func TestMissingTools(t *testing.T) {
	whole := toolPath
	// only makes a folder with nothing but these tools the whole PATH.
	only := func(t *testing.T, tools ...string) {
		folder := t.TempDir()
		for _, tool := range tools {
			if err := os.Symlink(findTool(tool), filepath.Join(folder, tool)); err != nil {
				t.Error(err)
			}
		}
		toolPath = folder
	}
	for _, c := range []struct {
		name, setUp      string
		needs, kept      []string
		family           string
		wantsTool, wants string
	}{
		{"ip6tables of the nft kind", iptablesFilter("-nft"), []string{"iptables-nft", "ip6tables-nft"}, nil, IPv6, "ip6tables", "IPv6"},
		{"ip6tables of the legacy kind", iptablesFilter("-legacy"), []string{"ip6tables-legacy"}, []string{"iptables-legacy"}, IPv6, "ip6tables", "IPv6"},
		{"nft", nativeFilter, []string{"nft"}, nil, IPv6, "nft", "input"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inNamespaces(t, c.needs, func(t *testing.T, _ func(string) bool) {
				shell(t, c.setUp)
				defer func() { toolPath = whole }()
				only(t, c.kept...)
				_, _, err := New().Open(Rule{Name: "sojourn-0123456789ab", Port: port, Protocol: TCP, Family: c.family, Source: "fd73::2"})
				known, ok := errors.AsType[*catalogue.Error](err)
				if !ok || known.Code != "SD-602" || known.Fields["tool"] != c.wantsTool || !strings.Contains(known.Sentence(), c.wants) {
					t.Error(err)
				}
			})
		})
	}
	t.Run("nft in the place of ip6tables", func(t *testing.T) {
		inNamespaces(t, []string{"nft", "iptables-nft", "ip6tables-nft"}, func(t *testing.T, connects func(string) bool) {
			shell(t, iptablesFilter("-nft"))
			defer func() { toolPath = whole }()
			only(t, "nft")
			walls := New()
			if _, changed, err := walls.Open(Rule{Name: "sojourn-0123456789ab", Port: port, Protocol: TCP, Family: IPv6, Source: "fd73::2"}); !changed || err != nil || !connects("fd73::1") {
				t.Error(changed, err)
			}
			if changed, err := walls.Close(func(Rule) bool { return true }); !changed || err != nil || connects("fd73::1") {
				t.Error(changed, err)
			}
		})
	})
}

func TestReorderedAndDoubledRulesAreClosed(t *testing.T) {
	inNamespaces(t, []string{"nft"}, func(t *testing.T, connects func(string) bool) {
		shell(t, nativeFilter)
		walls := New()
		ask := Rule{Name: "sojourn-0123456789ab", Port: port, Protocol: TCP, Family: IPv6, Source: "fd73::2"}
		if _, _, err := walls.Open(ask); err != nil {
			t.Error(err)
		}
		shell(t, `nft insert rule inet mine input tcp dport 1 accept comment '"somebody else"'
nft insert rule inet mine input ip6 saddr fd73::2 tcp dport 62286 accept comment '"sojourn-0123456789ab"'`)
		if changed, err := walls.Close(func(r Rule) bool { return r.Name == ask.Name }); !changed || err != nil || connects("fd73::1") {
			t.Error(changed, err)
		}
		if text := shell(t, listing); strings.Contains(text, "sojourn") || !strings.Contains(text, "somebody else") {
			t.Error(text)
		}
	})
}

func TestRuleIsClosedWhereNothingFiltersAnyMore(t *testing.T) {
	inNamespaces(t, []string{"nft"}, func(t *testing.T, _ func(string) bool) {
		shell(t, "nft add table inet a; nft add chain inet a in '{ type filter hook input priority 0; policy drop; }'")
		walls := New()
		if _, changed, err := walls.Open(Rule{Name: "sojourn-0123456789ab", Port: port, Protocol: TCP, Family: IPv6, Source: "fd73::2"}); !changed || err != nil {
			t.Error(changed, err)
		}
		shell(t, "nft add chain inet a in '{ policy accept; }'")
		if changed, err := walls.Close(func(Rule) bool { return true }); !changed || err != nil || strings.Contains(shell(t, listing), "sojourn") {
			t.Error(changed, err)
		}
	})
}

// A rule that a tool refuses in the second filter must not stay in the first.
func TestRefusalTakesEverythingBack(t *testing.T) {
	inNamespaces(t, []string{"nft", "ip6tables-legacy"}, func(t *testing.T, _ func(string) bool) {
		shell(t, nativeFilter+iptablesFilter("-legacy"))
		before := shell(t, listing)
		whole := toolPath
		defer func() { toolPath = whole }()
		folder := t.TempDir()
		for _, tool := range []string{"nft", "iptables-legacy"} {
			_ = os.Symlink(findTool(tool), filepath.Join(folder, tool))
		}
		real := findTool("ip6tables-legacy")
		stub := "#!/bin/sh\ncase \" $* \" in *' -I '*) echo 'refused by policy' >&2; exit 4;; esac\nexec " + real + " \"$@\"\n"
		if err := os.WriteFile(filepath.Join(folder, "ip6tables-legacy"), []byte(stub), 0o755); err != nil {
			t.Error(err)
		}
		toolPath = folder
		_, _, err := New().Open(Rule{Name: "sojourn-0123456789ab", Port: port, Protocol: TCP, Family: IPv6, Source: "fd73::2"})
		toolPath = whole
		if known, ok := errors.AsType[*catalogue.Error](err); !ok || known.Code != "SD-603" || !strings.Contains(known.Fields["detail"], "refused by policy") {
			t.Error(err)
		}
		if after := shell(t, listing); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
}
