// x
package firewall

type none struct{}

func New() Firewall                              { return none{} }
func (none) Kind() string                        { return KindNone }
func (none) Open(Rule) ([]Rule, bool, error)     { return nil, false, nil }
func (none) Close(func(Rule) bool) (bool, error) { return false, nil }
func (none) List() ([]Rule, error)               { return nil, nil }
