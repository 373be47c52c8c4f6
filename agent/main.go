// This file is the command line.

package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"sojourn.example/agent/internal/guard"
	"sojourn.example/agent/internal/service"
)

// version is the collection's, put in by the linker.
var version = "0.0.0"

const (
	gcPercent   = 40
	memoryLimit = 64 << 20 // beyond it the collector works harder; it is no hard bound

	guardPercent = 10 // the guard waits, and does nothing else
	guardLimit   = 24 << 20
)

func main() {
	command := ""
	if len(os.Args) > 1 {
		command = os.Args[1]
	}
	switch command {
	case "serve":
		// A guest on the target: little memory goes before speed in the garbage collector. What is fast here is streamed.
		debug.SetGCPercent(gcPercent)
		debug.SetMemoryLimit(memoryLimit)
		os.Exit(service.Serve(version, os.Args[2:]))
	case guard.Command:
		debug.SetGCPercent(guardPercent)
		debug.SetMemoryLimit(guardLimit)
		runtime.GOMAXPROCS(1)
		os.Exit(guard.Run(os.Stdin))
	case "launch":
		os.Exit(service.Launch(os.Stdin, os.Stdout))
	case "version":
		fmt.Println(version)
	default:
		fmt.Fprintln(os.Stderr, "usage: agent serve | launch | version")
		os.Exit(2)
	}
}
