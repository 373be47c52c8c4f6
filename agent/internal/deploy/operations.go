// This file has what each operation does; the work itself is in the packages that it calls.

package deploy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"io"
	"math"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"
	"unicode/utf8"

	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/files"
	"sojourn.example/agent/internal/firewall"
	"sojourn.example/agent/internal/host"
	"sojourn.example/agent/internal/lease"
	"sojourn.example/agent/internal/leftovers"
	"sojourn.example/agent/internal/packages"
	"sojourn.example/agent/internal/process"
	"sojourn.example/agent/internal/soap"
)

// Bounds of deploy.wsdl.
const (
	maximumWait     = 60 * time.Second
	defaultOutput   = 1 << 20
	maximumOutput   = 16 << 20
	maximumLease    = 86400
	maximumChecksum = 64
	minimumHandle   = 16
	maximumHandle   = 64
	maximumLabel    = 256
	maximumRelease  = 64
)

// releasePatience is how long a process that is to be released may take to end.
const releasePatience = time.Minute

// terminals tells whether processes can have one.
const terminals = runtime.GOOS == "linux"

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
	Coming      process.Coming
}

// Deployment is the service's state: one for the agent's life.
type Deployment struct {
	Settings
	processes *process.Table
	files     *files.Store
	shutdown  chan struct{}
}

// New makes the service.
func New(s Settings) *Deployment {
	return &Deployment{
		Settings:  s,
		processes: process.NewTable(s.Folder, s.Coming),
		files:     files.NewStore(s.Folder),
		shutdown:  make(chan struct{}, 1),
	}
}

// Server makes the HTTP server that answers for it.
func (d *Deployment) Server() *Server { return newServer(d.operations()) }

func (d *Deployment) operations() map[string]operation {
	return map[string]operation{
		"GetInfo":            handle(d.getInfo),
		"RenewLease":         handle(d.renewLease),
		"Execute":            handle(d.execute),
		"KeepArchive":        handle(d.keepArchive),
		"PrepareInterpreter": handle(d.prepareInterpreter),
		"ListExecutions":     handle(d.listExecutions),
		"ReadOutput":         handle(d.readOutput),
		"WriteInput":         handle(d.writeInput),
		"Signal":             handle(d.signal),
		"Release":            handle(d.release),
		"PutFile":            handle(d.putFile),
		"GetFile":            handle(d.getFile),
		"Stat":               handle(d.stat),
		"Remove":             handle(d.remove),
		"Extract":            handle(d.extract),
		"QueryPackages":      handle(d.queryPackages),
		"OpenPort":           handle(d.openPort),
		"ClosePort":          handle(d.closePort),
		"ListPorts":          handle(d.listPorts),
		"RemoveLeftovers":    handle(d.removeLeftovers),
		"Shutdown":           handle(d.shutDown),
	}
}

// ShutdownAsked receives once a Shutdown has been answered.
func (d *Deployment) ShutdownAsked() <-chan struct{} { return d.shutdown }

// Unfinished gives the number of running processes that must not be interrupted, and a channel that closes when it may have changed.
func (d *Deployment) Unfinished() (changed <-chan struct{}, running int) {
	return d.processes.Unfinished()
}

// Processes gives the processes that were not released, and a channel that closes when that may have changed.
func (d *Deployment) Processes() (all []process.Status, changed <-chan struct{}) {
	return d.processes.List()
}

// SetUnread says whether the client is gone, so that nothing may wait for it.
func (d *Deployment) SetUnread(unread bool) { d.processes.SetUnread(unread) }

// Close lets no process begin any more, unless one that must not be interrupted runs, or is about to.
func (d *Deployment) Close() bool { return d.processes.Close() }

// KillOutliving: see process.Table.
func (d *Deployment) KillOutliving() { d.processes.KillOutliving() }

// End ends what may be ended and removes what uploads left half done.
func (d *Deployment) End() {
	d.processes.End()
	d.files.End()
}

func optional[T any](value T, present bool) *T {
	if !present {
		return nil
	}
	return &value
}

// nonZero gives an optional element for a value whose zero means that there is none.
func nonZero[T comparable](value T) *T {
	var zero T
	return optional(value, value != zero)
}

func given[T any](value *T) (given T) {
	if value != nil {
		given = *value
	}
	return given
}

// seconds reads a time span; what is too long for a time.Duration is as good as for ever.
func seconds(element string, value *float64) (time.Duration, error) {
	if value == nil {
		return 0, nil
	}
	if *value < 0 {
		return 0, badRequest(element + " is negative")
	}
	if *value > math.MaxInt64/float64(2*time.Second) {
		return math.MaxInt64 / 2, nil
	}
	return time.Duration(*value * float64(time.Second)), nil
}

func waiting(value *float64) (time.Duration, error) {
	wait, err := seconds("WaitSeconds", value)
	return min(wait, maximumWait), err
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
		Transport:              d.Config.Transport,
		Port:                   int64(d.Port),
		TLSVersion:             tls.VersionName(c.tlsVersion),
		FirewallKind:           d.Firewall.Kind(),
		FirewallRule:           optional(d.Config.Name(), d.RuleOpened),
		PackageManagers:        packages.Managers(),
		LeaseSeconds:           d.Lease.Length().Seconds(),
		LeaseRemainingSeconds:  d.Lease.Remaining().Seconds(),
		FreeBytes:              free,
		ResidentBytes:          host.ResidentBytes(),
	}}, nil
}

func (d *Deployment) renewLease(_ *call, r *RenewLease) (*RenewLeaseResponse, error) {
	var length time.Duration
	if r.Seconds != nil {
		if *r.Seconds < 1 || *r.Seconds > maximumLease {
			return nil, badRequest("Seconds is not within 1 to 86400")
		}
		length = time.Duration(*r.Seconds * float64(time.Second))
	}
	return &RenewLeaseResponse{d.Lease.Renew(length).Seconds()}, nil
}

func (d *Deployment) execute(c *call, r *Execute) (*ExecuteResponse, error) {
	if (len(r.Arguments) > 0) == (r.CommandLine != nil) {
		return nil, badRequest("it must have either Arguments or CommandLine")
	}
	if len(r.Arguments) > 0 && r.Arguments[0] == "" {
		return nil, badRequest("the program's name is empty")
	}
	timeout, err := seconds("TimeoutSeconds", r.TimeoutSeconds)
	if err != nil {
		return nil, err
	}
	if r.TimeoutSeconds != nil && timeout == 0 {
		return nil, badRequest("TimeoutSeconds is zero")
	}
	wait, err := waiting(r.WaitSeconds)
	if err != nil {
		return nil, err
	}
	if r.Handle != nil && !isHandle(*r.Handle) {
		return nil, badRequest("Handle is not 16 to 64 characters of 0-9a-f")
	}
	if utf8.RuneCountInString(given(r.Label)) > maximumLabel {
		return nil, badRequest("Label is longer than 256 characters")
	}
	if len(r.Release) > maximumRelease {
		return nil, badRequest("Release has more than 64 handles")
	}
	request := &process.Request{
		Handle: given(r.Handle), Label: given(r.Label),
		Arguments: r.Arguments, CommandLine: given(r.CommandLine), Directory: given(r.Directory), User: given(r.User),
		KeepInputOpen: given(r.KeepInputOpen), Timeout: timeout, SafeToKill: given(r.SafeToKill),
		MayOutlive: given(r.MayOutlive), Warm: given(r.Warm), Terminal: given(r.Terminal),
	}
	if request.Terminal && (request.Warm || r.CommandLine == nil || !terminals) {
		return nil, badRequest("Terminal is for a CommandLine on Linux, without Warm")
	}
	for _, v := range r.Environment {
		request.Environment = append(request.Environment, process.Variable(v))
	}
	if r.Input != nil {
		d.processes.Foresee(*request)
		if request.Input, err = c.open(*r.Input); err != nil {
			return nil, err
		}
	}
	if r.Archive != nil {
		if request.Input, request.Archive, err = d.withArchive(request.Input, *r.Archive, given(r.ArchiveOffset), r.ArchiveParts); err != nil {
			return nil, err
		}
	}
	if len(r.Release) > 0 {
		// Nobody waits for it, and not before this process has ended or goes on without being waited for: to remove a control group takes
		// milliseconds in which none can be made, nor a process be moved to one.
		defer func() { go d.releaseAll(r.Release) }()
	}
	p, err := d.processes.Start(c.context, request)
	if err != nil {
		return nil, err
	}
	// From the beginning, or, where a process that is asked about again has lost that, from what is left.
	return &ExecuteResponse{execution(p, p.Await(c.context, wait, nil), p.Begin(), defaultOutput)}, nil
}

func isHandle(s string) bool {
	return len(s) >= minimumHandle && len(s) <= maximumHandle && strings.Trim(s, "0123456789abcdef") == ""
}

func (d *Deployment) listExecutions(*call, *ListExecutions) (*ListExecutionsResponse, error) {
	answer := &ListExecutionsResponse{}
	all, _ := d.processes.List()
	for _, s := range all {
		answer.Execution = append(answer.Execution, ExecutionStatus{
			Handle: s.Handle, Label: nonZero(s.Label), Running: !s.Ended, ExitCode: optional(s.ExitCode, s.Ended),
			TimedOut: s.TimedOut, SafeToKill: s.SafeToKill, Seconds: s.Seconds,
		})
	}
	return answer, nil
}

// execution is the answer about a process: its state and at most so many bytes of each output from the offsets on.
func execution(p *process.Process, s process.Snapshot, offsets [2]int64, most int64) Execution {
	payload := func(stream int) soap.Payload {
		from, end := offsets[stream], min(s.Ends[stream], offsets[stream]+most)
		return soap.Payload{
			Size:  end - from,
			Write: func(to io.Writer) error { return p.Output(stream, to, from, end) },
		}
	}
	all := s.Ends[0] <= offsets[0]+most && s.Ends[1] <= offsets[1]+most
	return Execution{
		Handle:               p.Handle,
		Running:              !s.Ended || !all,
		ExitCode:             optional(s.ExitCode, s.Ended),
		TimedOut:             s.TimedOut,
		StandardOutputOffset: offsets[0],
		StandardOutput:       payload(0),
		StandardErrorOffset:  offsets[1],
		StandardError:        payload(1),
		Seconds:              s.Seconds,
	}
}

func (d *Deployment) readOutput(c *call, r *ReadOutput) (*ReadOutputResponse, error) {
	p, err := d.processes.Find(r.Handle)
	if err != nil {
		return nil, err
	}
	wait, err := waiting(r.WaitSeconds)
	if err != nil {
		return nil, err
	}
	most := int64(defaultOutput)
	if r.MaximumBytes != nil {
		if *r.MaximumBytes < 1 {
			return nil, badRequest("MaximumBytes is not positive")
		}
		most = min(*r.MaximumBytes, maximumOutput)
	}
	offsets := [2]int64{r.StandardOutputOffset, r.StandardErrorOffset}
	for stream, offset := range offsets {
		if !p.Kept(stream, offset) {
			return nil, badRequest("there is no output at the offset that it names")
		}
	}
	return &ReadOutputResponse{execution(p, p.Await(c.context, wait, &offsets), offsets, most)}, nil
}

func (d *Deployment) writeInput(c *call, r *WriteInput) (*WriteInputResponse, error) {
	p, err := d.processes.Find(r.Handle)
	if err != nil {
		return nil, err
	}
	var data io.Reader
	if r.Data != nil {
		if data, err = c.open(*r.Data); err != nil {
			return nil, err
		}
	}
	var written int64
	if given(r.Answer) {
		if given(r.Close) {
			return nil, badRequest("an Answer does not Close")
		}
		written, err = p.Answer(c.context, data)
	} else {
		written, err = p.Write(c.context, data, given(r.Close))
	}
	if err != nil {
		return nil, err
	}
	return &WriteInputResponse{written}, nil
}

func (d *Deployment) signal(_ *call, r *Signal) (*SignalResponse, error) {
	p, err := d.processes.Find(r.Handle)
	if err != nil {
		return nil, err
	}
	switch r.Name {
	case process.Interrupt, process.Terminate, process.Kill:
	default:
		return nil, badRequest("Name is none of the signals")
	}
	if err := p.Signal(r.Name, given(r.Tree)); err != nil {
		return nil, err
	}
	return &SignalResponse{}, nil
}

func (d *Deployment) release(_ *call, r *Release) (*ReleaseResponse, error) {
	p, err := d.processes.Find(r.Handle)
	if err != nil {
		return nil, err
	}
	if err := d.processes.Release(p); err != nil {
		return nil, err
	}
	return &ReleaseResponse{}, nil
}

func (d *Deployment) releaseAll(handles []string) {
	var running []*process.Process
	for _, handle := range handles {
		if p, err := d.processes.Find(handle); err == nil && d.processes.Release(p) != nil {
			running = append(running, p)
		}
	}
	for _, p := range running { // killed just now, perhaps
		p.Await(context.Background(), releasePatience, nil)
		_ = d.processes.Release(p)
	}
}

func (d *Deployment) putFile(c *call, r *PutFile) (*PutFileResponse, error) {
	data, err := c.open(r.Data)
	if err != nil {
		return nil, err
	}
	sum, err := d.files.Put(&files.Put{
		Path: r.Path, Offset: r.Offset, TotalSize: r.TotalSize, Mode: given(r.Mode), User: given(r.User), Data: data,
		Checksum: func() ([]byte, error) { return c.bytes(r.Checksum, maximumChecksum) },
	})
	if err != nil {
		return nil, err
	}
	return &PutFileResponse{r.TotalSize, soap.Bytes(sum[:])}, nil
}

func (d *Deployment) getFile(_ *call, r *GetFile) (*GetFileResponse, error) {
	length := int64(-1)
	if r.Length != nil {
		if length = *r.Length; length < 0 {
			return nil, badRequest("Length is negative")
		}
	}
	sent, err := d.files.Get(r.Path, given(r.Offset), length, given(r.User))
	if err != nil {
		return nil, err
	}
	return &GetFileResponse{
		Size:     sent.Size,
		Data:     soap.Payload{Size: sent.Length, Write: sent.Data},
		Checksum: soap.Payload{Size: sha256.Size, Write: sent.Checksum},
	}, nil
}

func (d *Deployment) stat(_ *call, r *Stat) (*StatResponse, error) {
	s, err := d.files.Stat(r.Path, given(r.Checksum), given(r.User))
	if err != nil {
		return nil, err
	}
	there := s.Kind != files.Absent
	return &StatResponse{FileStatus{
		Path:     s.Path,
		Kind:     s.Kind,
		Size:     optional(s.Size, there),
		Mode:     nonZero(s.Mode),
		Owner:    nonZero(s.Owner),
		Modified: optional(s.Modified, there),
		Checksum: optional(soap.Hex(s.Checksum), s.Checksum != nil),
	}}, nil
}

func (d *Deployment) remove(_ *call, r *Remove) (*RemoveResponse, error) {
	removed, err := d.files.Remove(r.Path, given(r.Recursive), given(r.User))
	if err != nil {
		return nil, err
	}
	return &RemoveResponse{removed}, nil
}

func (d *Deployment) extract(_ *call, r *Extract) (*ExtractResponse, error) {
	count, err := d.files.Extract(r.Path, r.Folder)
	if err != nil {
		return nil, err
	}
	return &ExtractResponse{count}, nil
}

func (d *Deployment) queryPackages(_ *call, r *QueryPackages) (*QueryPackagesResponse, error) {
	found, err := packages.Query(given(r.Manager), given(r.Name))
	if err != nil {
		return nil, err
	}
	answer := &QueryPackagesResponse{}
	for _, p := range found {
		answer.Package = append(answer.Package, Package{
			Manager: p.Manager, Name: p.Name, Version: nonZero(p.Version), Architecture: nonZero(p.Architecture),
			Id: nonZero(p.ID), Publisher: nonZero(p.Publisher),
		})
	}
	return answer, nil
}

// port checks what OpenPort and ClosePort name.
func port(number int64, protocol, source, family *string) (rule firewall.Rule, err error) {
	if number < 1 || number > 65535 {
		return rule, badRequest("Port is not within 1 to 65535")
	}
	rule = firewall.Rule{Port: int(number), Protocol: firewall.TCP, Source: given(source), Family: given(family)}
	if protocol != nil {
		rule.Protocol = *protocol
	}
	if rule.Protocol != firewall.TCP && rule.Protocol != firewall.UDP {
		return rule, badRequest("Protocol is neither tcp nor udp")
	}
	if rule.Family != "" && rule.Family != firewall.IPv4 && rule.Family != firewall.IPv6 {
		return rule, badRequest("Family is neither ipv4 nor ipv6")
	}
	if rule.Source != "" {
		if prefix, err := netip.ParsePrefix(rule.Source); err == nil {
			rule.Source = prefix.Masked().String()
		} else if address, err := netip.ParseAddr(rule.Source); err == nil {
			rule.Source = address.Unmap().WithZone("").String()
		} else {
			return rule, badRequest("Source is neither an address nor a prefix")
		}
		of := firewall.FamilyOf(rule.Source)
		if rule.Family != "" && rule.Family != of {
			return rule, badRequest("Source is not of Family")
		}
		rule.Family = of
	}
	return rule, nil
}

func (d *Deployment) openPort(_ *call, r *OpenPort) (*OpenPortResponse, error) {
	rule, err := port(r.Port, r.Protocol, r.Source, r.Family)
	if err != nil {
		return nil, err
	}
	rule.Name = firewall.PortName(d.Config.Run, rule.Protocol, rule.Port, given(r.Keep))
	rules, changed, err := d.Firewall.Open(rule)
	if err != nil {
		return nil, err
	}
	return &OpenPortResponse{changed, portRules(rules)}, nil
}

// closePort takes back the further ports of this run, and kept ones of any: a kept rule belongs to whoever closes it.
func (d *Deployment) closePort(_ *call, r *ClosePort) (*ClosePortResponse, error) {
	wanted, err := port(r.Port, r.Protocol, r.Source, r.Family)
	if err != nil {
		return nil, err
	}
	names := []string{
		firewall.PortName(d.Config.Run, wanted.Protocol, wanted.Port, false),
		firewall.PortName(d.Config.Run, wanted.Protocol, wanted.Port, true),
	}
	changed, err := d.Firewall.Close(func(rule firewall.Rule) bool {
		return (rule.Name == names[0] || rule.Name == names[1]) &&
			(wanted.Source == "" || firewall.SameSource(rule.Source, wanted.Source)) &&
			(wanted.Family == "" || rule.Family == "" || rule.Family == wanted.Family)
	})
	if err != nil {
		return nil, err
	}
	return &ClosePortResponse{changed}, nil
}

func (d *Deployment) listPorts(*call, *ListPorts) (*ListPortsResponse, error) {
	rules, err := d.Firewall.List()
	if err != nil {
		return nil, err
	}
	return &ListPortsResponse{portRules(rules)}, nil
}

func portRules(rules []firewall.Rule) (all []PortRule) {
	for _, r := range rules {
		all = append(all, PortRule{
			Name: r.Name, Run: nonZero(r.Run()), Port: int64(r.Port), Protocol: r.Protocol,
			Family: nonZero(r.Family), Source: nonZero(r.Source), FirewallKind: r.Kind,
		})
	}
	return all
}

func (d *Deployment) removeLeftovers(_ *call, r *RemoveLeftovers) (*RemoveLeftoversResponse, error) {
	run := given(r.Run)
	if r.Run != nil && !config.IsRun(run) {
		return nil, badRequest("Run is not 12 lower-case hexadecimal digits")
	}
	if given(r.Force) && r.Run == nil {
		return nil, badRequest("Force without Run")
	}
	if run == d.Config.Run {
		return nil, badRequest("Run is the agent's own; Shutdown ends it")
	}
	found, err := leftovers.Remove(leftovers.Request{Run: run, DryRun: given(r.DryRun), Force: given(r.Force), Own: d.Config.Run, Firewall: d.Firewall})
	if err != nil {
		return nil, err
	}
	answer := &RemoveLeftoversResponse{}
	for _, l := range found {
		answer.Leftover = append(answer.Leftover, Leftover{Kind: l.Kind, Name: l.Name, Run: l.Run, State: l.State, Detail: nonZero(l.Detail)})
	}
	return answer, nil
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
