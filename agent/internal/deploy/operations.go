// This file has what each operation does; the work itself is in the packages that it calls.

package deploy

import (
	"crypto/tls"
	"os"
	"time"

	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/firewall"
	"sojourn.example/agent/internal/host"
	"sojourn.example/agent/internal/lease"
)

// Settings are what a deployment is made of.
type Settings struct {
	Config      *config.Config
	Folder      string
	Version     string
	Facts       host.Facts
	ServiceKind string
	Port        int
	Lease       *lease.Lease
	Firewall    firewall.Firewall
	RuleOpened  bool // the controller needed a rule to get in
}

// Deployment is the service's state: one for the agent's life.
type Deployment struct {
	Settings
	shutdown chan struct{}
}

// New makes the service.
func New(s Settings) *Deployment {
	return &Deployment{Settings: s, shutdown: make(chan struct{}, 1)}
}

// Server makes the HTTP server that answers for it.
func (d *Deployment) Server() *Server { return newServer(d.operations()) }

func (d *Deployment) operations() map[string]operation {
	return map[string]operation{
		"GetInfo":    handle(d.getInfo),
		"RenewLease": handle(d.renewLease),
		"Shutdown":   handle(d.shutDown),
	}
}

// ShutdownAsked receives once a Shutdown has been answered.
func (d *Deployment) ShutdownAsked() <-chan struct{} { return d.shutdown }

// Unfinished gives the number of running processes that must not be interrupted, and a channel that closes when it may have changed.
func (d *Deployment) Unfinished() (changed <-chan struct{}, running int) { return nil, 0 }

// End ends what may be ended and removes what uploads left half done.
func (d *Deployment) End() {}

func optional[T any](value T, present bool) *T {
	if !present {
		return nil
	}
	return &value
}

func given[T any](value *T) (given T) {
	if value != nil {
		given = *value
	}
	return given
}

func (d *Deployment) getInfo(c *call, _ *GetInfo) (*GetInfoResponse, error) {
	free, _ := host.FreeBytes(d.Folder)
	return &GetInfoResponse{Info{
		AgentVersion:           d.Version,
		Run:                    d.Config.Run,
		OperatingSystem:        d.Facts.Family,
		OperatingSystemName:    d.Facts.Name,
		OperatingSystemVersion: d.Facts.Version,
		Architecture:           d.Facts.Architecture,
		HostName:               d.Facts.HostName,
		BootId:                 d.Facts.BootID,
		Account:                d.Facts.Account,
		ProcessId:              int64(os.Getpid()),
		ServiceName:            d.Config.Name(),
		ServiceKind:            d.ServiceKind,
		Folder:                 d.Folder,
		Port:                   int64(d.Port),
		TLSVersion:             tls.VersionName(c.tlsVersion),
		FirewallKind:           d.Firewall.Kind(),
		FirewallRule:           optional(d.Config.Name(), d.RuleOpened),
		LeaseSeconds:           d.Lease.Length().Seconds(),
		LeaseRemainingSeconds:  d.Lease.Remaining().Seconds(),
		FreeBytes:              free,
		ResidentBytes:          host.ResidentBytes(),
	}}, nil
}

func (d *Deployment) renewLease(_ *call, r *RenewLease) (*RenewLeaseResponse, error) {
	var length time.Duration
	if r.Seconds != nil {
		if *r.Seconds < 1 || *r.Seconds > 86400 {
			return nil, badRequest("Seconds is not within 1 to 86400")
		}
		length = time.Duration(*r.Seconds * float64(time.Second))
	}
	return &RenewLeaseResponse{d.Lease.Renew(length).Seconds()}, nil
}

func (d *Deployment) shutDown(c *call, _ *Shutdown) (*ShutdownResponse, error) {
	_, running := d.Unfinished()
	c.after = func() {
		select {
		case d.shutdown <- struct{}{}:
		default:
		}
	}
	return &ShutdownResponse{int64(running)}, nil
}
