// This file is what Windows has in the place of a warm interpreter: its modules are PowerShell's.

package process

import "os"

type warmer struct{}

func (*warmer) start(*Request, *store, [3]*os.File, func(int)) child { return nil }

func (*warmer) archive(string) []byte { return nil }

func (*warmer) remember([]byte) string { return "" }

func (*warmer) prepare(string) {}

func (*warmer) foresee(*Request) {}

func (*warmer) prepareInterpreter(*Request, []string, []byte) {}

func (*warmer) giveWay(string, ...[]byte) {}

func (*warmer) end() {}

func before(*Request) []byte { return nil }
