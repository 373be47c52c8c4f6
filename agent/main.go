package main

import (
	"fmt"
	"os"

	"sojourn.example/agent/internal/service"
)

// version is the collection's, put in by the linker.
var version = "0.0.0"

func main() {
	command := ""
	if len(os.Args) > 1 {
		command = os.Args[1]
	}
	switch command {
	case "serve":
		os.Exit(service.Serve(version, os.Args[2:]))
	case "launch":
		os.Exit(service.Launch(os.Stdin, os.Stdout))
	case "version":
		fmt.Println(version)
	default:
		fmt.Fprintln(os.Stderr, "usage: agent serve | launch | version")
		os.Exit(2)
	}
}
