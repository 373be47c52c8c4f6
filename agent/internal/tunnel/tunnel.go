// Package tunnel is where an agent waits for its client that must open no port: it is reached through what is open already, the
// way in's own connection. No firewall has a say in it, so there is no rule either.
package tunnel

import (
	"net"

	"sojourn.example/agent/internal/config"
)

// Entrance is a place on the target that its way in leads to.
type Entrance struct {
	net.Listener
	Place string // an address of the loopback, or a pipe's name: what the way in is to open
	Port  int    // 0: it has none
}

// Listen makes the entrance for a run.
func Listen(c *config.Config) (*Entrance, error) { return listen(c) }
