// Package account on Windows: the agent works as LocalSystem only; naming another user is refused before it gets here.
package account

import "sojourn.example/agent/internal/catalogue"

// Account is a user of the target.
type Account struct{ Name string }

// Lookup refuses: running and writing as another user is not supported on Windows.
func Lookup(string) (*Account, error) {
	return nil, catalogue.New("SD-504", "detail", "User is for Linux targets")
}

// Folder is empty: no user can be named.
func (a *Account) Folder() string { return "" }

// Do runs the work as the agent.
func Do(_ *Account, work func() error) error { return work() }
