// This file finds what really filters the input of a Linux target and treats all of it as one firewall.

package firewall

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"sojourn.example/agent/internal/catalogue"
)

// filter is one thing that an incoming packet must get past. A target can have several: a packet must get past all.
type filter interface {
	kind() string
	// open admits a rule of one family (or of both, where the filter covers both) and gives what is there for it now.
	open(rule Rule) (rules []Rule, changed bool, err error)
	// list gives this project's rules in it.
	list() ([]Rule, error)
	// close takes a listed rule back.
	close(rule Rule) error
	// needed tells whether packets of the family ("": of any) can be dropped here.
	needed(family string) bool
}

// New gives the target's firewall.
func New() Firewall { return &walls{foremost: KindNone} }

type walls struct {
	mu         sync.Mutex
	foremost   string
	generation uint32 // of nftables' rules, when a keeper last looked
}

// unchanged tells whether no rule can have changed since it was last called: nftables counts its changes, and all but legacy tables
// are kept there. It asks the kernel alone, and so costs next to nothing.
func (w *walls) unchanged() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	now, err := generation()
	if err != nil || legacyThere() {
		return false
	}
	before := w.generation
	w.generation = now
	return before == now && now != 0
}

// legacyThere tells whether there are tables of the legacy kind, of which changes are not counted.
func legacyThere() bool {
	for _, family := range []string{IPv4, IPv6} {
		if names, err := tableNames(family); err == nil && len(names) > 0 {
			return true
		}
	}
	return false
}

func (w *walls) Kind() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.foremost
}

// find looks afresh each time: what filters may change while the agent runs, by the very packages it installs.
func (w *walls) find() ([]filter, error) {
	var filters []filter
	managers := findManagers()
	filters = append(filters, managers...)
	lower, err := findNetfilter(managers)
	if err != nil {
		return nil, err
	}
	filters = append(filters, lower...)
	w.foremost = KindNone
	for _, f := range filters {
		if f.needed("") {
			w.foremost = f.kind()
			break
		}
	}
	return filters, nil
}

// findManagers gives the programs that own the rules of others: firewalld and ufw.
func findManagers() (filters []filter) {
	if f := findFirewalld(); f != nil {
		filters = append(filters, f)
	}
	if u := findUFW(); u != nil {
		filters = append(filters, u)
	}
	return filters
}

func has(filters []filter, kind string) bool {
	for _, f := range filters {
		if f.kind() == kind {
			return true
		}
	}
	return false
}

// findNetfilter gives what filters in the kernel's own tables and is nobody's of the managers.
func findNetfilter(managers []filter) ([]filter, error) {
	var filters []filter
	chains, err := inputChains()
	if err != nil {
		return nil, refused("nf_tables: " + err.Error())
	}
	if len(chains) > 0 {
		if filters, err = findTables(chains, managers); err != nil {
			return nil, err
		}
	}
	for _, family := range []string{IPv4, IPv6} {
		legacy, err := findLegacy(family, managers)
		if err != nil {
			return nil, err
		}
		if legacy != nil {
			filters = append(filters, legacy)
		}
	}
	return filters, nil
}

func (w *walls) Open(rule Rule) (all []Rule, changed bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	filters, err := w.find()
	if err != nil {
		return nil, false, err
	}
	type made struct {
		by   filter
		rule Rule
	}
	var undo []made
	for _, f := range filters {
		if !f.needed(rule.Family) {
			continue
		}
		rules, new, err := f.open(rule)
		if err != nil {
			for _, m := range undo {
				_ = m.by.close(m.rule)
			}
			return nil, false, err
		}
		if new {
			changed = true
			for _, r := range rules {
				undo = append(undo, made{f, r})
			}
		}
		all = append(all, rules...)
	}
	return all, changed, nil
}

func (w *walls) Close(match func(Rule) bool) (changed bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	filters, err := w.find()
	if err != nil {
		return false, err
	}
	var failed error
	for _, f := range filters {
		// A rule can be there twice, and deleting by specification takes one at a time: until none is left.
		for tries := 0; ; tries++ {
			rules, err := f.list()
			if err != nil {
				failed = err
				break
			}
			left := 0
			for _, r := range rules {
				if !match(r) {
					continue
				}
				left++
				if tries < 3 {
					if err := f.close(r); err != nil {
						failed = err
					}
					changed = true
				}
			}
			if left == 0 {
				break
			}
			if tries == 3 {
				if failed == nil {
					failed = refused("a rule is still there after its deletion")
				}
				return changed, failed
			}
		}
	}
	return changed, failed
}

func (w *walls) List() ([]Rule, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	filters, err := w.find()
	if err != nil {
		return nil, err
	}
	var all []Rule
	for _, f := range filters {
		rules, err := f.list()
		if err != nil {
			return nil, err
		}
		all = append(all, rules...)
	}
	return all, nil
}

func refused(detail string) error { return catalogue.New("SD-603", "detail", detail) }

// toolless is a filter that is known to drop, whose tool is missing: no rule can be made in it, and none of ours is there.
type toolless struct {
	name   string
	family string // "": both
	tool   string
}

func (t toolless) kind() string { return t.name }

func (t toolless) needed(family string) bool {
	return t.family == "" || family == "" || family == t.family
}

func (t toolless) open(Rule) ([]Rule, bool, error) {
	shown := map[string]string{IPv6: "IPv6", IPv4: "IPv4", "": "the input"}[t.family]
	return nil, false, catalogue.New("SD-602", "firewall", t.name, "family", shown, "tool", t.tool)
}

func (toolless) list() ([]Rule, error) { return nil, nil }

func (toolless) close(Rule) error { return nil }

// toolPath is where tools are looked for; tests narrow it.
var toolPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// findTool gives the path of a tool, or "". The agent's own PATH may lack the sbin folders.
func findTool(name string) string {
	for _, folder := range filepath.SplitList(toolPath) {
		path := filepath.Join(folder, name)
		if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// runTool runs a tool, untranslated, and gives its output; its first line of complaint is the error.
func runTool(path string, arguments ...string) (string, error) {
	command := exec.Command(path, arguments...)
	command.Env = []string{"PATH=" + toolPath, "LC_ALL=C", "HOME=/"}
	var output, complaint bytes.Buffer
	command.Stdout, command.Stderr = &output, &complaint
	err := command.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		text := complaint.String()
		if strings.TrimSpace(text) == "" {
			text = output.String()
		}
		first, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
		return output.String(), refused(filepath.Base(path) + " ended with " + exit.String() + ": " + first)
	}
	if err != nil {
		return "", refused(err.Error())
	}
	return output.String(), nil
}

// eachFamily gives the rule once for each family that it means and the filter covers.
func eachFamily(rule Rule, covers func(string) bool) (rules []Rule) {
	for _, family := range []string{IPv4, IPv6} {
		if (rule.Family == "" || rule.Family == family) && covers(family) {
			one := rule
			one.Family = family
			rules = append(rules, one)
		}
	}
	return rules
}

// same tells whether a listed rule does what the other asks for.
func same(listed, asked Rule) bool {
	return listed.Name == asked.Name && listed.Port == asked.Port && listed.Protocol == asked.Protocol &&
		listed.Family == asked.Family && SameSource(listed.Source, asked.Source)
}

func lookFor(rules []Rule, asked Rule) (Rule, bool) {
	for _, r := range rules {
		if same(r, asked) {
			return r, true
		}
	}
	return Rule{}, false
}
