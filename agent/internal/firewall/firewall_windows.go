// This file is the firewall of Windows: changed by netsh, judged by its exit code, and read in the registry, where nothing is
// translated. Rules there outlive a reboot, unlike those on Linux.

package firewall

import (
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"sojourn.example/agent/internal/catalogue"
)

const rulesKey = `SYSTEM\CurrentControlSet\Services\SharedAccess\Parameters\FirewallPolicy\FirewallRules`

// New gives the target's firewall.
func New() Firewall { return &netsh{made: make(map[Rule]bool)} }

type netsh struct {
	mu   sync.Mutex
	made map[Rule]bool // by this agent: known even if the registry should not show them; true: it has shown them once
}

func (*netsh) Kind() string { return KindWindows }

func (n *netsh) Open(rule Rule) ([]Rule, bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	rule.Kind = KindWindows
	there, err := n.list()
	if err != nil {
		return nil, false, err
	}
	for _, r := range there {
		if r.Name == rule.Name && r.Port == rule.Port && r.Protocol == rule.Protocol && r.Family == rule.Family && SameSource(r.Source, rule.Source) {
			return []Rule{r}, false, nil
		}
	}
	arguments := append([]string{"advfirewall", "firewall", "add", "rule", "name=" + rule.Name, "dir=in", "action=allow",
		"protocol=" + strings.ToUpper(rule.Protocol), "localport=" + strconv.Itoa(rule.Port), "profile=any", "enable=yes"}, remote(rule)...)
	if err := runNetsh(arguments...); err != nil {
		return nil, false, err
	}
	n.made[rule] = false
	return []Rule{rule}, true, nil
}

func remote(rule Rule) []string {
	switch {
	case rule.Source != "":
		return []string{"remoteip=" + rule.Source}
	case rule.Family != "":
		return []string{"remoteip=" + wholeFamily[rule.Family]}
	}
	return nil
}

func (n *netsh) Close(match func(Rule) bool) (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	there, err := n.list()
	if err != nil {
		return false, err
	}
	changed := false
	var failed error
	for _, rule := range there {
		if !match(rule) {
			continue
		}
		arguments := append([]string{"advfirewall", "firewall", "delete", "rule", "name=" + rule.Name, "dir=in",
			"protocol=" + strings.ToUpper(rule.Protocol), "localport=" + strconv.Itoa(rule.Port)}, remote(rule)...)
		err := runNetsh(arguments...)
		delete(n.made, rule)
		after, listErr := n.list()
		if listErr != nil {
			return changed, listErr
		}
		if !slices.Contains(after, rule) {
			changed = true // gone, by us or by somebody else in the meantime
			continue
		}
		if err == nil {
			err = refused("it is still there after its deletion")
		}
		failed = err
	}
	return changed, failed
}

func (n *netsh) List() ([]Rule, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.list()
}

func (n *netsh) list() ([]Rule, error) {
	var all []Rule
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, rulesKey, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if err != nil && !errors.Is(err, registry.ErrNotExist) {
		return nil, refused(err.Error())
	}
	if err == nil {
		defer key.Close()
		names, err := key.ReadValueNames(-1)
		if err != nil {
			return nil, refused(err.Error())
		}
		for _, name := range names {
			value, _, err := key.GetStringValue(name)
			if err != nil {
				continue // removed while we read
			}
			if rule, ok := parseRegistryRule(value); ok {
				all = append(all, rule)
			}
		}
	}
	for made, seen := range n.made {
		found := false
		for _, r := range all {
			found = found || r.Name == made.Name && r.Port == made.Port && r.Protocol == made.Protocol && SameSource(r.Source, made.Source)
		}
		switch {
		case found:
			n.made[made] = true
		case seen: // somebody else removed it
			delete(n.made, made)
		default:
			all = append(all, made)
		}
	}
	return all, nil
}

func refused(detail string) error { return catalogue.New("SD-603", "detail", detail) }

func runNetsh(arguments ...string) error {
	system, err := windows.GetSystemDirectory()
	if err != nil {
		return refused(err.Error())
	}
	tool := filepath.Join(system, "netsh.exe")
	command := exec.Command(tool, arguments...)
	command.SysProcAttr = &syscall.SysProcAttr{HideWindow: true, CreationFlags: windows.CREATE_NO_WINDOW}
	err = command.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		// Its words are in the target's language and code page; the code is all that is sure.
		return refused("netsh " + strings.Join(arguments[:4], " ") + " ended with " + strconv.Itoa(exit.ExitCode()))
	}
	if err != nil {
		return catalogue.New("SD-602", "firewall", KindWindows, "family", "the input", "tool", tool)
	}
	return nil
}
