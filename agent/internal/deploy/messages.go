// This file has the messages of the service: the shapes of deploy.wsdl as Go structs, in the schema's names and order.
// What the elements mean is written there; a test compares the two.

package deploy

import (
	"time"

	"sojourn.example/agent/internal/soap"
)

type (
	// Variable is one environment variable.
	Variable struct {
		Name  string
		Value string
	}

	// Info is what the agent is and where it runs.
	Info struct {
		AgentVersion           string
		Run                    string
		OperatingSystem        string
		OperatingSystemName    string
		OperatingSystemVersion string
		Architecture           string
		HostName               string
		BootId                 string
		Account                string
		ProcessId              int64
		ServiceName            string
		ServiceKind            string
		Folder                 string
		Transport              string
		Port                   int64
		TLSVersion             string
		FirewallKind           string
		FirewallRule           *string
		PackageManagers        []string
		LeaseSeconds           float64
		LeaseRemainingSeconds  float64
		FreeBytes              int64
		ResidentBytes          int64
	}

	// Execution is a process and its output since the offsets asked for.
	Execution struct {
		Handle               string
		Running              bool
		ExitCode             *int64
		TimedOut             bool
		StandardOutputOffset int64
		StandardOutput       soap.Payload
		StandardErrorOffset  int64
		StandardError        soap.Payload
		Seconds              float64
	}

	// ExecutionStatus is a process that was started and not released.
	ExecutionStatus struct {
		Handle     string
		Label      *string
		Running    bool
		ExitCode   *int64
		TimedOut   bool
		SafeToKill bool
		Seconds    float64
	}

	// FileStatus is what is at a path.
	FileStatus struct {
		Path     string
		Kind     string
		Size     *int64
		Mode     *string
		Owner    *string
		Modified *time.Time
		Checksum *soap.Hex
	}

	// Package is one entry of a package database.
	Package struct {
		Manager      string
		Name         string
		Version      *string
		Architecture *string
		Id           *string
		Publisher    *string
	}

	// PortRule is a firewall rule that this project made.
	PortRule struct {
		Name         string
		Run          *string
		Port         int64
		Protocol     string
		Family       *string
		Source       *string
		FirewallKind string
	}

	// Leftover is something that a run of this project left.
	Leftover struct {
		Kind   string
		Name   string
		Run    string
		State  string
		Detail *string
	}
)

// The operations' requests and answers.
type (
	GetInfo         struct{}
	GetInfoResponse struct{ Info Info }

	RenewLease         struct{ Seconds *float64 }
	RenewLeaseResponse struct{ RemainingSeconds float64 }

	Execute struct {
		Arguments      []string
		CommandLine    *string
		Directory      *string
		Environment    []Variable
		User           *string
		Input          *soap.Received
		KeepInputOpen  *bool
		TimeoutSeconds *float64
		WaitSeconds    *float64
		SafeToKill     *bool
		MayOutlive     *bool
		Warm           *bool
		Archive        *string
		ArchiveOffset  *int64
		ArchiveParts   *string
		Handle         *string
		Label          *string
		Release        []string
		Terminal       *bool
	}
	ExecuteResponse struct{ Execution Execution }

	KeepArchive struct {
		Archive      string
		ArchiveParts string
		Data         *soap.Received
	}
	KeepArchiveResponse struct{}

	PrepareInterpreter struct {
		CommandLine string
		Interpreter []string
		Environment []Variable
		User        *string
		Beginning   soap.Received
	}
	PrepareInterpreterResponse struct{}

	ListExecutions         struct{}
	ListExecutionsResponse struct{ Execution []ExecutionStatus }

	ReadOutput struct {
		Handle               string
		StandardOutputOffset int64
		StandardErrorOffset  int64
		WaitSeconds          *float64
		MaximumBytes         *int64
	}
	ReadOutputResponse struct{ Execution Execution }

	WriteInput struct {
		Handle string
		Data   *soap.Received
		Close  *bool
		Answer *bool
	}
	WriteInputResponse struct{ BytesWritten int64 }

	Signal struct {
		Handle string
		Name   string
		Tree   *bool
	}
	SignalResponse struct{}

	Release         struct{ Handle string }
	ReleaseResponse struct{}

	PutFile struct {
		Path      string
		Offset    int64
		TotalSize int64
		Mode      *string
		User      *string
		Data      soap.Received
		Checksum  soap.Received
	}
	PutFileResponse struct {
		Size     int64
		Checksum soap.Payload
	}

	GetFile struct {
		Path   string
		Offset *int64
		Length *int64
		User   *string
	}
	GetFileResponse struct {
		Size     int64
		Data     soap.Payload
		Checksum soap.Payload
	}

	Stat struct {
		Path     string
		Checksum *bool
		User     *string
	}
	StatResponse struct{ Status FileStatus }

	Remove struct {
		Path      string
		Recursive *bool
		User      *string
	}
	RemoveResponse struct{ Removed bool }

	Extract struct {
		Path   string
		Folder string
	}
	ExtractResponse struct{ Files int64 }

	QueryPackages struct {
		Manager *string
		Name    *string
	}
	QueryPackagesResponse struct{ Package []Package }

	OpenPort struct {
		Port     int64
		Protocol *string
		Source   *string
		Family   *string
		Keep     *bool
	}
	OpenPortResponse struct {
		Changed bool
		Rule    []PortRule
	}

	ClosePort struct {
		Port     int64
		Protocol *string
		Source   *string
		Family   *string
	}
	ClosePortResponse struct{ Changed bool }

	ListPorts         struct{}
	ListPortsResponse struct{ Rule []PortRule }

	RemoveLeftovers struct {
		Run    *string
		DryRun *bool
		Force  *bool
	}
	RemoveLeftoversResponse struct{ Leftover []Leftover }

	Shutdown         struct{}
	ShutdownResponse struct{ Waiting int64 }
)
