import Mutex from "./index.js"

export const { Hold } = Mutex
export { Mutex }
export default Mutex
