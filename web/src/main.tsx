/** Puts the page into its document. */
import { render } from "preact";
import { followAddress } from "./parts/route";
import { applyTheme } from "./parts/theme";
import { Page } from "./views/page";

applyTheme();
followAddress();
render(<Page />, document.getElementById("page")!);
