package tunnel

import (
	"net"
	"testing"

	"sojourn.example/agent/internal/catalogue"
	"sojourn.example/agent/internal/config"
)

func TestTheEntranceIsOfTheFamilyThatTheControllerHasComeBy(t *testing.T) {
	for controller, place := range map[string]string{"192.0.2.1": "127.0.0.1", "2001:db8::1": "::1"} {
		entrance, err := Listen(&config.Config{ControllerAddresses: []string{controller}, Ports: config.Ports{First: 45112, Last: 45115}})
		if err != nil {
			t.Fatal(err)
		}
		if entrance.Place != place {
			t.Errorf("for a controller at %s it is at %s", controller, entrance.Place)
		}
		entrance.Close()
	}
}

func TestTheEntranceIsOnTheLoopbackAlone(t *testing.T) {
	c := &config.Config{Run: "0123456789ab", Ports: config.Ports{First: 45110, Last: 45111}}
	var open []*Entrance
	for range 4 { // two ports, and two families: a busy port of one is no reason to give up the other
		entrance, err := Listen(c)
		if err != nil {
			break
		}
		defer entrance.Close()
		address := entrance.Addr().(*net.TCPAddr)
		if !address.IP.IsLoopback() || address.IP.String() != entrance.Place || address.Port != entrance.Port || address.Port < 45110 || address.Port > 45111 {
			t.Errorf("it listens on %v and says %s, %d", address, entrance.Place, entrance.Port)
		}
		open = append(open, entrance)
	}
	if len(open) < 2 || open[0].Port == open[1].Port {
		t.Fatalf("%d entrances", len(open))
	}
	if _, err := Listen(c); catalogue.As(err, "").Code != "SD-601" {
		t.Errorf("with no free port it gave %v", err)
	}
}
