//go:build windows

// shutdown stands in for the shutdown.exe of Windows, which in Wine is an empty stub: /r and /s with /t, and /a restart,
// switch off and keep the target, with the exit codes of the real one.
//
// What it cannot show: the warning to users, remote machines (/m), reasons (/d), and programs that refuse to end.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"sojourn.lab/programs/internal/host"
)

func main() {
	restart, stop, abort, seconds := false, false, false, 30
	words := os.Args[1:]
	for len(words) > 0 {
		option := strings.ToLower(strings.Replace(words[0], "-", "/", 1))
		words = words[1:]
		switch option {
		case "/r", "/g":
			restart = true
		case "/s":
			stop = true
		case "/p":
			stop, seconds = true, 0
		case "/a":
			abort = true
		case "/f", "/hybrid", "/soft", "/fw":
		case "/t", "/c", "/d", "/m":
			if len(words) == 0 {
				usage()
			}
			if option == "/t" {
				value, err := strconv.Atoi(words[0])
				if err != nil || value < 0 || value > 315360000 {
					usage()
				}
				seconds = value
			}
			words = words[1:]
		default:
			usage()
		}
	}
	switch {
	case abort:
		end(host.Ask(map[string]any{"abort": true}))
	case restart || stop:
		end(host.Ask(map[string]any{"shutdown": map[string]any{"restart": restart, "seconds": seconds}}))
	}
	usage()
}

func usage() {
	fmt.Print("Usage: shutdown [/r | /s | /p | /a] [/f] [/t xxx] [/c \"comment\"] [/d [p|u:]xx:yy]\r\n")
	os.Exit(1)
}

func end(answer string, err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	switch answer {
	case "ok":
		os.Exit(0)
	case "1116":
		fmt.Print("Unable to abort the system shutdown because no shutdown was in progress.(1116)\r\n")
		os.Exit(1116)
	case "1190":
		fmt.Print("A system shutdown has already been scheduled.(1190)\r\n")
		os.Exit(1190)
	}
	fmt.Println(answer)
	os.Exit(1)
}
