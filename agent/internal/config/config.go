// Package config holds what the way in gives the agent at its start (config) and what it answers (ready), both JSON.
package config

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sojourn.example/agent/internal/catalogue"
)

// File names in the agent's folder.
const (
	ConfigName = "config.json"
	ReadyName  = "ready.json"
	// SessionName is whose agent it is; only the way in reads it.
	SessionName = "session"
	// LeftName is there once an agent has ended that could not close its rules: the error, as in ready.
	LeftName = "left.json"
)

// A config is small; what is larger is not one.
const maximumSize = 64 << 10

// Ports is the range that the agent listens in: it takes the first free one.
type Ports struct {
	First int `json:"first"`
	Last  int `json:"last"`
}

func (p Ports) String() string { return fmt.Sprintf("%d-%d", p.First, p.Last) }

// Config is what the way in gives the agent. Nothing in it is secret.
type Config struct {
	Run                 string   `json:"run"`
	ClientSHA256        string   `json:"client_sha256"`
	ControllerAddresses []string `json:"controller_addresses"`
	Ports               Ports    `json:"ports"`
	LeaseSeconds        float64  `json:"lease_seconds"`
	Transport           string   `json:"transport,omitempty"`
}

// Transports, as in deploy.wsdl: a port of its own with a firewall rule, or what the way in leads to without either.
const (
	Direct = "direct"
	Tunnel = "tunnel"
)

// Name is what everything of this run is named on the target.
func (c *Config) Name() string { return Prefix + c.Run }

// Prefix begins every name that this project gives on a target.
const Prefix = "sojourn-"

// Lease is the lease's first length.
func (c *Config) Lease() time.Duration { return time.Duration(c.LeaseSeconds * float64(time.Second)) }

// Fingerprint is the SHA-256 of the only client certificate that is let in.
func (c *Config) Fingerprint() (sum [32]byte) {
	raw, _ := hex.DecodeString(c.ClientSHA256) // Read has checked it
	copy(sum[:], raw)
	return sum
}

// IsRun tells whether s is a run id: 12 lower-case hexadecimal digits.
func IsRun(s string) bool {
	if len(s) != 12 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Read reads and checks a config.
func Read(from io.Reader) (*Config, error) {
	raw, err := io.ReadAll(io.LimitReader(from, maximumSize+1))
	if err != nil {
		return nil, bad(err)
	}
	if len(raw) > maximumSize {
		return nil, bad(errors.New("longer than 64 KiB"))
	}
	var c Config
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, bad(err)
	}
	if err := c.check(); err != nil {
		return nil, bad(err)
	}
	return &c, nil
}

// Load reads the config that lies in the agent's folder.
func Load(folder string) (*Config, error) {
	file, err := os.Open(filepath.Join(folder, ConfigName))
	if err != nil {
		return nil, bad(err)
	}
	defer file.Close()
	return Read(file)
}

func bad(err error) error {
	return catalogue.New("SD-406", "detail", "its config: "+err.Error())
}

func (c *Config) check() error {
	if !IsRun(c.Run) {
		return errors.New("'run' is not 12 lower-case hexadecimal digits")
	}
	if raw, err := hex.DecodeString(c.ClientSHA256); err != nil || len(raw) != 32 {
		return errors.New("'client_sha256' is not 64 hexadecimal digits")
	}
	if c.Ports.First < 1 || c.Ports.Last > 65535 || c.Ports.First > c.Ports.Last {
		return errors.New("'ports' is not a range within 1 to 65535")
	}
	if !(c.LeaseSeconds >= 1 && c.LeaseSeconds <= 86400) {
		return errors.New("'lease_seconds' is not within 1 to 86400")
	}
	switch c.Transport {
	case "":
		c.Transport = Direct
	case Direct, Tunnel:
	default:
		return errors.New("'transport' is neither direct nor tunnel")
	}
	if len(c.ControllerAddresses) > 64 {
		return errors.New("'controller_addresses' has more than 64")
	}
	for i, address := range c.ControllerAddresses {
		parsed, err := netip.ParseAddr(address)
		if err != nil {
			return errors.New("'controller_addresses' has a malformed address")
		}
		// The zone is the controller's name of its interface: it means nothing here.
		c.ControllerAddresses[i] = parsed.Unmap().WithZone("").String()
	}
	return nil
}

// Ready is what the agent answers once it serves, or the error because of which it does not.
type Ready struct {
	Run          string           `json:"run,omitempty"`
	ProcessID    int              `json:"process_id,omitempty"`
	Port         int              `json:"port,omitempty"`
	Tunnel       string           `json:"tunnel,omitempty"` // where the way in is to lead: an address of the loopback, or a pipe's name
	Certificate  string           `json:"certificate,omitempty"`
	FirewallKind string           `json:"firewall_kind,omitempty"`
	BootID       string           `json:"boot_id,omitempty"`
	Error        *catalogue.Error `json:"error,omitempty"`
}

// Save writes the answer into the folder.
func (r *Ready) Save(folder string) error { return r.save(folder, ReadyName) }

// Leave empties the folder, but for what is to be kept, and writes into it what could not be removed.
func Leave(folder string, left *catalogue.Error, keep ...string) error {
	entries, err := os.ReadDir(folder)
	for _, entry := range entries {
		if !slices.Contains(keep, entry.Name()) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(folder, entry.Name())))
		}
	}
	return errors.Join(err, (&Ready{Error: left}).save(folder, LeftName))
}

// save writes under another name and renames: who sees it sees all of it.
func (r *Ready) save(folder, name string) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	final := filepath.Join(folder, name)
	if err := os.WriteFile(final+".new", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(final+".new", final)
}
