// This file reads the Uninstall keys of the Windows registry, in the 64-bit and the 32-bit view.

package packages

import (
	"strings"

	"golang.org/x/sys/windows/registry"
)

const uninstall = `SOFTWARE\Microsoft\Windows\CurrentVersion\Uninstall`

// Managers are the databases that the target has.
func Managers() []string { return []string{Windows} }

func query(_, name string) ([]Package, error) {
	var all []Package
	for _, view := range []struct {
		access       uint32
		architecture string
	}{{registry.WOW64_64KEY, "64"}, {registry.WOW64_32KEY, "32"}} {
		some, err := readView(view.access, view.architecture, name)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

func readView(view uint32, architecture, name string) ([]Package, error) {
	root, err := registry.OpenKey(registry.LOCAL_MACHINE, uninstall, registry.ENUMERATE_SUB_KEYS|view)
	if err == registry.ErrNotExist {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	ids, err := root.ReadSubKeyNames(-1)
	if err != nil {
		return nil, err
	}
	var all []Package
	for _, id := range ids {
		key, err := registry.OpenKey(root, id, registry.QUERY_VALUE|view)
		if err != nil {
			continue // removed while we read
		}
		display, _, _ := key.GetStringValue("DisplayName")
		if name == "" && display != "" || name != "" && (strings.EqualFold(display, name) || strings.EqualFold(id, name)) {
			version, _, _ := key.GetStringValue("DisplayVersion")
			publisher, _, _ := key.GetStringValue("Publisher")
			if display == "" {
				display = id
			}
			all = append(all, Package{Manager: Windows, Name: display, Version: version, Architecture: architecture, ID: id, Publisher: publisher})
		}
		key.Close()
	}
	return all, nil
}
