// Package ownership keeps others out of the agent's folder: what is staged in it is nobody else's to read, nor to swap.
package ownership

import "sojourn.example/agent/internal/catalogue"

// Take makes the folder root's, or on Windows the system's and the administrators', alone. Its error is the one that the agent
// gives instead of serving.
func Take(folder string) error {
	if err := take(folder); err != nil {
		return catalogue.New("SD-406", "detail", "others cannot be kept out of its folder: "+err.Error())
	}
	return nil
}
