// Package packages reads the target's package databases: dpkg and rpm on Linux, the Uninstall keys on Windows. It changes nothing.
package packages

import "sojourn.example/agent/internal/catalogue"

// Managers, as in deploy.wsdl.
const (
	Dpkg    = "dpkg"
	RPM     = "rpm"
	Windows = "windows"
)

// Package is one entry of a database; empty: the database does not say.
type Package struct {
	Manager      string
	Name         string
	Version      string
	Architecture string
	ID           string
	Publisher    string
}

// Query lists the databases, or the one named; with a name, only the packages of that name.
func Query(manager, name string) ([]Package, error) {
	var all []Package
	for _, found := range Managers() {
		if manager != "" && manager != found {
			continue
		}
		some, err := query(found, name)
		if err != nil {
			return nil, catalogue.New("SD-711", "manager", found, "detail", err.Error())
		}
		all = append(all, some...)
	}
	return all, nil
}
