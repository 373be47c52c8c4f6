// Package host tells facts about the target: its operating system, boot, space and the agent's own memory.
package host

import (
	"os"
	"runtime"
)

// Facts are what stays the same while the agent runs.
type Facts struct {
	Family       string // windows or linux
	Name         string // for people
	Version      string
	Architecture string
	HostName     string
	BootID       string
	Account      string
}

// Learn finds the facts out.
func Learn() Facts {
	hostName, _ := os.Hostname()
	return Facts{
		Family:       runtime.GOOS,
		Name:         systemName(),
		Version:      systemVersion(),
		Architecture: runtime.GOARCH,
		HostName:     hostName,
		BootID:       bootID(),
		Account:      account(),
	}
}
